"""Small checkpoints on disk, written and read with the safetensors library, and recipes over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_cli.recipe import Recipe, parse_recipe

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "torch_dtype": "float32"}


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor | Sequence[Any]],
    *,
    config: Mapping[str, Any] | None = LLAMA,
    metadata: Mapping[str, str] | None = None,
    shards: int = 1,
) -> Path:
    """Write a checkpoint and return its folder; lists of numbers become float32 tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, because the library refuses tensors that share memory.
    held = {
        name: value.clone() if isinstance(value, Tensor) else torch.tensor(value) for name, value in tensors.items()
    }
    said = {"format": "pt", **(metadata or {})}
    if shards == 1:
        save_file(held, folder / "model.safetensors", metadata=said)
    else:
        names = list(held)
        weight_map = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: held[name] for name in names[shard::shards]}
            save_file(part, folder / file, metadata=said)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def write_header(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], int]]) -> Path:
    """Write a file of zeros that takes no space on disk; tensors as name -> (dtype, shape, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries, position = {}, 0
    for name, (dtype, shape, nbytes) in tensors.items():
        offsets = [position, position + nbytes]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        position += nbytes
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + position)
    return path


def recipe_over(folder: Path, content: Mapping[str, Any], *overrides: str) -> Recipe:
    """Return a recipe whose relative paths start from a folder."""
    return parse_recipe(yaml.safe_dump(dict(content), sort_keys=False), folder=folder, overrides=overrides)


def write_recipe(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a recipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
    return path
