"""Headers of safetensors files: checked when they are read, aligned when they are written.

Layout of the format: eight bytes with the header's length (little-endian), the header (JSON), then the tensors' bytes
without gap or overlap. A header comes from whoever made the file, so every number in it is checked before use.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.bounded_json import is_text, parse_json
from merge_cli.checkpoint.dtypes import DType
from merge_cli.checkpoint.extent import Extent
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.checkpoint.samples import sample_digest
from merge_cli.errors import CheckpointError

# The limit that the format's own library sets.
_MOST_HEADER_BYTES = 100_000_000
# How the file begins that a clone without git-lfs has in place of the weights; no header is that long.
_LFS_POINTER = b"version "
_MOST_NAME_LENGTH = 1000
# Numbers of block formats and their shared exponents, which mean nothing by themselves.
_BLOCK_DTYPES = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Identity of a file, which tells it from another and from itself after a change.

    Size, time, header and sample say what the file holds, here and on any machine to which it is copied with its time:
    they decide whether a stopped merge may go on, and are what a manifest records. They are read from the file at each
    planning. Device, inode and change time say that it is still the very same file, untouched: they count within one
    run, in which they spare reading it again; a copy has others, as has a file whose mode or links were changed, so
    that they refuse nothing by themselves (:class:`~merge_cli.checkpoint.Reader`).

    Attributes:
        path: Where it is.
        size: Bytes.
        mtime_ns: When it was last written, as the system says; whoever copies a file may set it.
        sha256: Of its header alone.
        sample: Digest of some of its numbers.
        place: Device, inode and change time (ctime_ns), which only the system sets.
    """

    path: Path
    size: int
    mtime_ns: int
    sha256: str
    sample: str
    place: tuple[int, int, int]

    @property
    def content(self) -> dict[str, int | str]:
        """Facts that a copy of the file shares, by a name that a user knows."""
        return {"size": self.size, "time": self.mtime_ns, "header": self.sha256, "numbers": self.sample}


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a weight file; ``tensors`` in the order of their bytes."""

    identity: FileIdentity
    tensors: dict[str, Extent]
    metadata: dict[str, str]


def read_header(path: Path, files: Files) -> Header:
    """Read and check the header of a safetensors file, without reading tensor data.

    Raises:
        CheckpointError: If the file is missing, truncated, or its header is not that of a sound safetensors file.
    """
    with read_errors(path):
        fd = files.open_read(path)
    try:
        with read_errors(path):
            stat = files.stat(fd)
        if stat.st_size < 8:
            raise _damaged(path, f"it has {stat.st_size} bytes, fewer than the 8 that hold the header's length")
        length = bytearray(8)
        files.read_exactly(fd, memoryview(length), 0, path)
        if length == _LFS_POINTER:
            raise CheckpointError(f"{path} is a git-lfs pointer, not the weights", hint="fetch them: git lfs pull")
        header_bytes = int.from_bytes(length, "little")
        if header_bytes > min(_MOST_HEADER_BYTES, stat.st_size - 8):
            raise _damaged(path, f"its header claims {header_bytes} bytes of the {stat.st_size - 8} that follow")
        raw = bytearray(header_bytes)
        files.read_exactly(fd, memoryview(raw), 8, path)
        entries = _parse(bytes(raw), path)
        metadata = _metadata(entries.pop("__metadata__", {}), path)
        tensors = [_tensor(name, entry, path, 8 + header_bytes) for name, entry in entries.items()]
        tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
        _check_coverage(tensors, 8 + header_bytes, stat.st_size, path)
        sample = sample_digest(tensors, fd, files)
    finally:
        files.close_read(fd)
    identity = identify(path, stat, hashlib.sha256(raw).hexdigest(), sample)
    return Header(identity, {tensor.name: tensor for tensor in tensors}, metadata)


def identify(path: Path, stat: os.stat_result, sha256: str, sample: str) -> FileIdentity:
    """Return a file's identity from what the system, its header and its numbers say."""
    return FileIdentity(path, stat.st_size, stat.st_mtime_ns, sha256, sample, place_of(stat))


def place_of(stat: os.stat_result) -> tuple[int, int, int]:
    """Return device, inode and change time."""
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a sound safetensors file: {why}", hint="download or copy it again")


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        entries = parse_json(raw)
    except ValueError as error:
        raise _damaged(path, f"its header is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not a JSON object")
    return entries


def _metadata(found: Any, path: Path) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _damaged(path, "its __metadata__ is not a mapping of texts to texts")
    wrong = next((text for pair in found.items() for text in pair if not is_text(text)), None)
    if wrong is not None:
        raise _damaged(path, f"{wrong[:100]!r} in its __metadata__ has half of a surrogate pair, which is not text")
    return found


def is_tensor_name(name: str) -> bool:
    """Tell whether a tensor may be called so: in tables, errors and indices a name must be one short piece of text."""
    return name.isprintable() and len(name) <= _MOST_NAME_LENGTH


def _tensor(name: str, entry: Any, path: Path, data_start: int) -> Extent:
    if not is_tensor_name(name):
        raise _damaged(path, f"{name[:100]!r} of {len(name)} characters cannot be the name of a tensor")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor '{name[:100]}' must have exactly dtype, shape and data_offsets")
    if entry["dtype"] in _BLOCK_DTYPES:
        raise CheckpointError(
            f"{path} is quantised: tensor '{name[:100]}' has dtype {entry['dtype']}, as only MXFP4, NVFP4 and kin "
            "have, which is not supported",
            hint="merge the original checkpoint in bfloat16, float16 or float32, then quantise the result",
        )
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DType.__members__:
        raise CheckpointError(
            f"{path}: tensor '{name[:100]}' has dtype {str(entry['dtype'])[:40]!r}, which is not supported",
            hint=f"supported: {', '.join(DType)}",
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor '{name[:100]}' has a shape or offsets that are not natural numbers")
    # A zero among huge sizes makes an empty tensor whose other sizes no library can multiply.
    if math.prod(size for size in shape if size) >= 2**63:
        raise _damaged(path, f"tensor '{name[:100]}' has more elements than can be counted: {str(shape)[:100]}")
    tensor = Extent(name, DType(entry["dtype"]), tuple(shape), path, data_start + offsets[0])
    if tensor.nbytes != offsets[1] - offsets[0]:
        raise _damaged(
            path,
            f"tensor '{name[:100]}' of shape {str(list(shape))[:100]} and dtype {tensor.dtype} takes {tensor.nbytes} "
            f"bytes, its offsets give {offsets[1] - offsets[0]}",
        )
    return tensor


def _naturals(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(number) is int and 0 <= number < 2**63 for number in value)
    )


def _check_coverage(tensors: list[Extent], start: int, size: int, path: Path) -> None:
    """Refuse tensors whose bytes do not fill the file from the header to its end, each byte once."""
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlaps the one before it" if tensor.offset < position else "leaves a gap before it"
            raise _damaged(path, f"tensor '{tensor.name[:100]}' {what}")
        position += tensor.nbytes
    if position != size:
        raise _damaged(path, f"its tensors end at byte {position}, the file at byte {size}")


def encode_header(entries: dict[str, Any]) -> bytes:
    """Write a header, its length included, padded with blanks so that tensor data starts at a multiple of eight."""
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
