"""What several tests of the checkpoint package need: crafted files, faulty system calls, tensors read back."""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from merge_cli.checkpoint import Checkpoint, Files, Reader, Source

# Every dtype of a safetensors header next to torch's own.
TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def filled(dtype: torch.dtype, shape: tuple[int, ...], *, seed: int = 0) -> torch.Tensor:
    """A tensor of random bits, so that every byte counts; bools are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    width = torch.empty((), dtype=dtype).element_size()
    count = torch.Size(shape).numel()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count * width,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor in C order."""
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).tolist()) if tensor.numel() else b""


def write_raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write a safetensors file with any header at all, bytes or something that JSON can hold."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    """What a header says of one tensor: one float32 at the start unless told otherwise."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read_all(checkpoint: Checkpoint, files: Files | None = None) -> dict[str, bytes]:
    """The bytes of every tensor, as a Reader gives them."""
    with Reader(checkpoint.files, files) as reader:
        return {name: read_one(reader, tensor) for name, tensor in checkpoint.tensors.items()}


def read_one(reader: Reader, tensor: Source) -> bytes:
    return bytes(reader.read_bytes(tensor, 0, tensor.numel))


def read_into(reader: Reader, view: memoryview, tensor: Source, start: int) -> None:
    """Fill a view with the bytes of a stored tensor from element ``start``."""
    ((path, offset, _),) = tensor.byte_ranges(start, len(view) // tensor.itemsize)
    reader.read_raw(view, path, offset)


def assert_holds(checkpoint: Checkpoint, expected: Mapping[str, torch.Tensor]) -> None:
    """The checkpoint has these tensors and no others: names, dtypes, shapes and every byte."""
    names = {value: key for key, value in TORCH_DTYPES.items()}
    found = {name: (tensor.dtype.value, tensor.shape) for name, tensor in checkpoint.tensors.items()}
    assert found == {name: (names[tensor.dtype], tuple(tensor.shape)) for name, tensor in expected.items()}
    assert read_all(checkpoint) == {name: raw_bytes(tensor) for name, tensor in expected.items()}


class Trickle(Files):
    """Transfers at most ``most`` bytes a call, as a slow or interrupted system may."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls = 0

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        self.calls += 1
        return super().pread(fd, view[: self.most], offset)

    def pwrite(self, fd: int, view: memoryview, offset: int) -> int:
        self.calls += 1
        return super().pwrite(fd, view[: self.most], offset)


class Failing(Files):
    """Lets the named calls fail with an error number; keeps count of the descriptors that are open."""

    def __init__(self, number: int, calls: Iterable[str]) -> None:
        self.error = OSError(number, os.strerror(number))
        self.calls = list(calls)
        self.held: list[int] = []

    def _fail(self, call: str) -> None:
        if call in self.calls:
            raise self.error

    def open_read(self, path: Path) -> int:
        self._fail("open_read")
        self.held.append(super().open_read(path))
        return self.held[-1]

    def open_write(self, path: Path) -> int:
        self._fail("open_write")
        self.held.append(super().open_write(path))
        return self.held[-1]

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        self._fail("pread")
        return super().pread(fd, view, offset)

    def pwrite(self, fd: int, view: memoryview, offset: int) -> int:
        self._fail("pwrite")
        return super().pwrite(fd, view, offset)

    def stat(self, fd: int) -> os.stat_result:
        self._fail("stat")
        return super().stat(fd)

    def reserve(self, fd: int, size: int) -> None:
        self._fail("reserve")
        super().reserve(fd, size)

    def sync(self, fd: int) -> None:
        self._fail("sync")
        super().sync(fd)

    def rename(self, old: Path, new: Path) -> None:
        self._fail("rename")
        super().rename(old, new)

    def close(self, fd: int) -> None:
        if fd in self.held:
            self.held.remove(fd)
        super().close(fd)
        self._fail("close")


ENOSPC, EIO = errno.ENOSPC, errno.EIO
