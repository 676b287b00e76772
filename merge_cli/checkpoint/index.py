"""A checkpoint: a folder of weight files and what stands beside them, or a single weight file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.collecting import without_collecting
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.header import FileIdentity, Header, StoredTensor
from merge_cli.checkpoint.json_text import read_json
from merge_cli.checkpoint.locate import refuse_link_out
from merge_cli.checkpoint.pickled import read_any_header
from merge_cli.checkpoint.turning import reading
from merge_cli.errors import CheckpointError, listed

# Names under which quantised checkpoints keep the scales that their float8 numbers must be multiplied with.
_SCALE_NAME = re.compile(r"(^|[._])(weight_|input_|k_|v_)?scale(_inv|_2)?$|_scale$|(^|[._])q?scale_(weight|input|act)$")
# Names of integers that hold several numbers each (GPTQ, AWQ, bitsandbytes, compressed-tensors).
_PACKED_NAME = re.compile(r"[._](qweight|qzeros|absmax|weight_packed)$")
_SHARD_NAME = re.compile(r"-\d+-of-(?!0*1\.)\d+\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint from its headers.

    Attributes:
        label: What the recipe calls it.
        root: The folder, or the weight file itself.
        tensors: Every tensor once, in the order of files and of bytes.
        tied: Further names of tied tensors -> the name in ``tensors``.
        files: The identity of each weight file, in order.
        metadata: The ``__metadata__`` of the first file.
        config: ``config.json`` as found, empty where there is none.
    """

    label: str
    root: Path
    tensors: Mapping[str, StoredTensor]
    tied: Mapping[str, str]
    files: tuple[FileIdentity, ...]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def find(self, name: str) -> StoredTensor | None:
        """Return the tensor of this name, a tied tensor under any of its names, or None."""
        return self.tensors.get(self.tied.get(name, name))


@without_collecting()
def open_checkpoint(root: Path, *, label: str | None = None, files: Files | None = None) -> Checkpoint:
    """Read the headers of the checkpoint at ``root``, a folder or one weight file.

    Raises:
        CheckpointError: If there is none, its files contradict each other, or it is of a kind that cannot be merged.
    """
    files = files or Files()
    with reading(root):
        folder = root.is_dir()
        config = _config(root, files) if folder else {}
        paths, weight_map = _weight_files(root, files) if folder else ([root], None)
    headers: list[Header] = []
    tied: dict[str, str] = {}
    for path in paths:
        header, names = read_any_header(path, files)
        headers.append(header)
        twice = sorted(tied.keys() & names.keys())
        if twice:
            raise CheckpointError(f"{root}: {listed(twice)} stand in more than one file")
        tied.update(names)
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        twice = sorted((tensors.keys() | tied.keys()) & header.tensors.keys())
        if twice:
            raise CheckpointError(f"{root}: {listed(twice)} stand in more than one file")
        tensors.update(header.tensors)
    if weight_map is not None:
        _check_index(root, headers, tied, weight_map)
    _refuse_quantised(root, tensors, config)
    identities = tuple(header.identity for header in headers)
    return Checkpoint(label or str(root), root, tensors, tied, identities, headers[0].metadata, config)


def _config(folder: Path, files: Files) -> dict[str, Any]:
    path = folder / "config.json"
    refuse_link_out(path, folder)
    return read_json(path, files) if path.is_file() else {}


def _weight_files(folder: Path, files: Files) -> tuple[list[Path], dict[str, str] | None]:
    """Return the weight files of a folder in order, and the index where there is one."""
    paths, weight_map = _named_files(folder, files)
    for path in paths:
        if not path.name.isprintable():
            raise CheckpointError(f"{folder} holds {path.name!r}, whose name cannot be printed", hint="rename it")
        refuse_link_out(path, folder)
    return paths, weight_map


def _named_files(folder: Path, files: Files) -> tuple[list[Path], dict[str, str] | None]:
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            refuse_link_out(index, folder)
            weight_map = _weight_map(index, files)
            names = sorted(set(weight_map.values()))
            # transformers would take the single file, mergekit the shards: neither guess is safe.
            if stem not in names and (folder / stem).is_file():
                raise CheckpointError(
                    f"{folder} holds {stem} and an index of other files, which may be two models",
                    hint=f"name {folder / stem} in the recipe, or remove the one that does not belong",
                )
            return [folder / name for name in names], weight_map
        if (folder / stem).is_file():
            return [folder / stem], None
    if (folder / "adapter_model.safetensors").is_file() or (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds a LoRA adapter, which is not supported yet",
            hint="merge it into its base first: peft's merge_and_unload, then save_pretrained",
        )
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1 and not _SHARD_NAME.search(found[0].name):
        return found, None
    if found:
        raise CheckpointError(
            f"{folder} holds {listed(path.name for path in found)} and no model.safetensors.index.json that says which "
            "files belong",
            hint="name one of the files in the recipe, or save the model again with save_pretrained",
        )
    raise CheckpointError(
        f"{folder} holds no weights; expected model.safetensors, model.safetensors.index.json or pytorch_model.bin"
    )


def _weight_map(index: Path, files: Files) -> dict[str, str]:
    weight_map = read_json(index, files).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or file in {"", ".."} or not file.isprintable():
            said = f"{name[:100]} is said to be in {repr(file)[:300]}"
            raise CheckpointError(f"{index}: {said}, which is not a file of the folder")
    return weight_map


def _check_index(root: Path, headers: list[Header], tied: Mapping[str, str], weight_map: Mapping[str, str]) -> None:
    """Refuse an index and headers that do not name the same tensors in the same files."""
    held = {name: header.identity.path.name for header in headers for name in header.tensors}
    held |= {name: held[first] for name, first in tied.items()}
    wrong = [name for name, file in weight_map.items() if held.get(name) != file]
    if wrong:
        raise CheckpointError(
            f"{root}: its index names {listed(wrong)}, which the shard named there does not hold",
            hint="the download is incomplete or mixed; fetch the checkpoint again",
        )
    unlisted = [name for name in held if name not in weight_map]
    if unlisted:
        raise CheckpointError(f"{root}: its shards hold {listed(unlisted)}, which its index does not name")


def _refuse_quantised(root: Path, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    scales = [name for name in tensors if _SCALE_NAME.search(name)]
    small = [name for name, tensor in tensors.items() if tensor.dtype.itemsize == 1 and tensor.dtype.is_float]
    packed = [name for name, tensor in tensors.items() if not tensor.dtype.is_float and _PACKED_NAME.search(name)]
    quantised = isinstance(config.get("quantization_config"), dict)
    if quantised or (small and scales) or packed:
        held = f"packed integers ({listed(packed, most=2)})" if packed else f"scales ({listed(scales, most=2)})"
        why = "its config.json has a quantization_config" if quantised else f"it holds {held}"
        raise CheckpointError(
            f"{root} is quantised: {why}, so its numbers are not the weights",
            hint="merge the original checkpoint in bfloat16, float16 or float32, then quantise the result",
        )
