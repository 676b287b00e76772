"""``pytorch_model.bin`` files: the byte ranges of their tensors, found without running the pickle.

torch writes such a file as an uncompressed zip archive with one member per storage, and a pickle that says which tensor
uses which part of which. The archive's directory tells where the members are in the file; the two together give
offsets, so that these tensors too are read in positioned blocks. Nothing is mapped, and torch is not asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.archive import Archive, read_archive
from merge_cli.checkpoint.dtypes import DType
from merge_cli.checkpoint.extent import Extent
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.header import FileIdentity, Header, identify, is_tensor_name, read_header
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.checkpoint.rebuilding import DamagedPickleError, PickledTensor
from merge_cli.checkpoint.samples import sample_digest
from merge_cli.checkpoint.unpickling import ForeignNameError, unpickle
from merge_cli.errors import CheckpointError

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
    archive = read_archive(path, files, hint=_RESAVE)
    state = _state_dict(_unpickled(archive, _RESAVE), path)
    tensors: dict[str, Extent] = {}
    tied: dict[str, str] = {}
    by_place: dict[tuple[int, DType | None, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        if tensor.trouble:
            raise CheckpointError(f"{path}: tensor '{name}' has {tensor.trouble}, which is not supported", hint=_RESAVE)
        found = tensor.named(name, path)
        first = by_place.setdefault((tensor.offset, tensor.dtype, tensor.shape), name) if found.numel else name
        if first != name:
            tied[name] = first
        else:
            tensors[name] = found
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1].offset))
    return Header(_identity(archive, ordered.values(), files), ordered, {}), tied


def read_saved(path: Path, files: Files, *, hint: str) -> tuple[Any, FileIdentity]:
    """Return what torch has saved, as plain data and :class:`PickledTensor`, and the file's identity.

    Args:
        path: The file.
        files: The system calls to use.
        hint: What to do about a file that is refused.

    Raises:
        CheckpointError: If it is not in torch's zip format, is damaged, or holds more than data and tensors.
    """
    archive = read_archive(path, files, hint=hint)
    return _unpickled(archive, hint), _identity(archive, (), files)


def _identity(archive: Archive, tensors: Iterable[Extent], files: Files) -> FileIdentity:
    path = archive.path
    with read_errors(path):
        fd = files.open_read(path)
        try:
            sample = sample_digest(list(tensors), fd, files)
        finally:
            files.close_read(fd)
    return identify(path, archive.stat, hashlib.sha256(archive.pickle).hexdigest(), sample)


def _unpickled(archive: Archive, hint: str) -> Any:
    try:
        return unpickle(archive.pickle, archive.storages)
    except ForeignNameError as error:
        raise CheckpointError(
            f"{archive.path} holds more than tensors ({str(error)[:100]!r}), and reading it would run code that came "
            "with it; refused",
            hint=hint + ", on a machine where you trust this file",
        ) from error
    except DamagedPickleError as error:
        raise CheckpointError(f"{archive.path} cannot be read: {error}", hint=hint) from error


def _state_dict(state: Any, path: Path) -> Mapping[str, PickledTensor]:
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, PickledTensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} is not a state dict: expected a mapping of names to tensors", hint=_RESAVE)
    for name in state:
        if not is_tensor_name(name) or name == "__metadata__":
            raise CheckpointError(f"{path}: {name[:100]!r} cannot be the name of a tensor", hint=_RESAVE)
    return state
