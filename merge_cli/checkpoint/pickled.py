"""``pytorch_model.bin`` files: where their tensors' bytes lie, found without running what the pickle says.

torch writes such a file as an uncompressed zip archive with one member per storage. ``torch.load`` with
``weights_only=True, mmap=True`` tells which tensor uses which part of the mapping; the archive's directory tells where
the members are in the file; the two together give offsets, so that these tensors too are read in positioned blocks and
never through the mapping.
"""

from __future__ import annotations

import hashlib
import mmap
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge_cli.checkpoint.dtypes import DType, from_torch
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.header import Header, StoredTensor, identify, is_tensor_name, read_header
from merge_cli.checkpoint.samples import sample_digest
from merge_cli.checkpoint.turning import reading
from merge_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Names and shapes only; the numbers lie outside of it.
_MOST_PICKLE_BYTES = 100_000_000
_RESAVE = "load it with transformers and save it again: save_pretrained writes safetensors"


def read_any_header(path: Path, files: Files) -> tuple[Header, dict[str, str]]:
    """Find the tensors of a weight file of either format, as its name says; see :func:`read_pickled_header`."""
    return (read_header(path, files), {}) if path.suffix == ".safetensors" else read_pickled_header(path, files)


def read_pickled_header(path: Path, files: Files) -> tuple[Header, dict[str, str]]:
    """Find the tensors of a ``.bin`` file.

    Returns:
        The header, and for each further name of a tied tensor the name that its first mention has.

    Raises:
        CheckpointError: If the file holds anything but tensors, or is not in torch's zip format.
    """
    with reading(path):
        # What is no regular file is refused here, before the libraries below open it by its name.
        fd = files.open_read(path)
        try:
            stat = files.stat(fd)
        finally:
            files.close(fd)
    members, digest = _storage_members(path, files)
    state = _load(path)
    dtypes = {name: _plain_dtype(name, tensor, path) for name, tensor in state.items()}
    start = _mapping_start(state, members, path)
    tensors: dict[str, StoredTensor] = {}
    tied: dict[str, str] = {}
    by_place: dict[tuple[int, DType, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        dtype, shape = dtypes[name], tuple(tensor.shape)
        offset = tensor.data_ptr() - start if tensor.numel() else 0
        first = by_place.setdefault((offset, dtype, shape), name) if tensor.numel() else name
        if first != name:
            tied[name] = first
        else:
            tensors[name] = StoredTensor(name, dtype, shape, path, offset)
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1].offset))
    with reading(path):
        fd = files.open_read(path)
        try:
            sample = sample_digest(list(ordered.values()), fd, files)
        finally:
            files.close_read(fd)
    return Header(identify(path, stat, digest, sample), ordered, {}), tied


def _plain_dtype(name: str, tensor: Tensor, path: Path) -> DType:
    """Return the dtype of a tensor whose bytes in the file are its elements in C order, or refuse it."""
    import torch

    dtype = from_torch(tensor.dtype)
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        what = f"layout {tensor.layout} on device {tensor.device}"
    elif dtype is None:
        what = f"dtype {tensor.dtype}"
    elif not tensor.is_contiguous():
        what = "a transposed or strided layout"
    elif tensor.is_neg():
        what = "a sign that is applied on reading"
    else:
        return dtype
    raise CheckpointError(f"{path}: tensor '{name}' has {what}, which is not supported", hint=_RESAVE)


def _storage_members(path: Path, files: Files) -> tuple[dict[int, int], str]:
    """Return offset -> size of every storage in the archive, and the SHA-256 of its pickle."""
    with reading(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return _members(archive, path, files)
        except (CheckpointError, OSError, MemoryError):
            raise
        # zipfile meets damage with whatever its parsing stumbles over: struct, zlib, Unicode and index errors.
        except Exception as error:
            raise CheckpointError(f"{path} is not in torch's zip format (torch 1.6 or later)", hint=_RESAVE) from error


def _members(archive: zipfile.ZipFile, path: Path, files: Files) -> tuple[dict[int, int], str]:
    members: dict[int, int] = {}
    digest = hashlib.sha256()
    with reading(path):
        fd = files.open_read(path)
        try:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path}: member {info.filename[:100]!r} is compressed", hint=_RESAVE)
                if info.filename.endswith(("/data.pkl", "/byteorder")) and info.file_size > _MOST_PICKLE_BYTES:
                    raise CheckpointError(f"{path}: its pickle has {info.file_size} bytes", hint=_RESAVE)
                if info.filename.endswith("/data.pkl"):
                    digest.update(archive.read(info))
                if info.filename.endswith("/byteorder") and archive.read(info) != b"little":
                    raise CheckpointError(f"{path} was written in another byte order than little-endian", hint=_RESAVE)
                if "/data/" not in info.filename:
                    continue
                local = bytearray(30)
                files.read_exactly(fd, memoryview(local), info.header_offset, path)
                names_bytes = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
                members[info.header_offset + 30 + names_bytes] = info.file_size
        finally:
            files.close_read(fd)
    return members, digest.hexdigest()


def _load(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and reading it would run code that came with it; refused",
            hint=_RESAVE + ", on a machine where you trust this file",
        ) from error
    except MemoryError:
        raise
    # A damaged pickle makes the unpickler raise whatever its instructions happen to lead to.
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read: {first_line[:200]}", hint=_RESAVE) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} is not a state dict: expected a mapping of names to tensors", hint=_RESAVE)
    for name in state:
        if not is_tensor_name(name) or name == "__metadata__":
            raise CheckpointError(f"{path}: {name[:100]!r} cannot be the name of a tensor", hint=_RESAVE)
    return dict(state)


def _mapping_start(state: dict[str, Tensor], members: dict[int, int], path: Path) -> int:
    """Return the address at which byte 0 of the file is mapped: the one that puts every storage on a member."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    storages.pop(0, None)
    if not storages:
        return 0
    first, size = next(iter(storages.items()))
    starts = [
        first - offset
        for offset, member_size in members.items()
        if member_size == size
        and (first - offset) % mmap.PAGESIZE == 0
        and all(members.get(at - first + offset) == nbytes for at, nbytes in storages.items())
    ]
    # Several fit only where the archive holds storages that no tensor uses, which torch.save does not write.
    if len(starts) == 1:
        return starts[0]
    raise CheckpointError(f"{path}: its tensors do not lie where its directory says", hint=_RESAVE)
