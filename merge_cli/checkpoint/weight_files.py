"""The weight files of a checkpoint folder, and its index."""

from __future__ import annotations

import re
from pathlib import Path

from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.foreign import refuse_adapter_folder, refuse_foreign_folder
from merge_cli.checkpoint.resolve import check_link_stays_inside
from merge_cli.errors import CheckpointError
from merge_cli.text import listed

_SHARD_NAME = re.compile(r"-\d+-of-(?!0*1\.)\d+\.safetensors$")


def weight_files(folder: Path, files: Files) -> tuple[list[Path], dict[str, str] | None]:
    """Return the weight files of a folder in order, and the index where there is one.

    Raises:
        CheckpointError: If there are none, or it is not certain which ones belong.
    """
    paths, weight_map = _named_files(folder, files)
    for path in paths:
        if not path.name.isprintable():
            raise CheckpointError(f"{folder} holds {path.name!r}, whose name cannot be printed", hint="rename it")
        check_link_stays_inside(path, folder)
    return paths, weight_map


def _named_files(folder: Path, files: Files) -> tuple[list[Path], dict[str, str] | None]:
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            check_link_stays_inside(index, folder)
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
    refuse_adapter_folder(folder)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1 and not _SHARD_NAME.search(found[0].name):
        return found, None
    if found:
        raise CheckpointError(
            f"{folder} holds {listed(path.name for path in found)} and no model.safetensors.index.json that says which "
            "files belong",
            hint="name one of the files in the recipe, or save the model again with save_pretrained",
        )
    refuse_foreign_folder(folder)
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
