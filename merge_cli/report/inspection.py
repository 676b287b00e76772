"""Inspection of a checkpoint's headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from merge_cli.checkpoint import Checkpoint
from merge_cli.checkpoint.layers import layer_of, split_layer
from merge_cli.report.provenance import Ingredient, made_from


@dataclass(frozen=True)
class Group:
    """Tensors that differ only in their layer: ``name`` has ``{i}`` where the number stands."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """Contents of a checkpoint; sizes in bytes. ``made_from`` is empty where it is not known to be merged."""

    checkpoint: Checkpoint
    made_from: tuple[Ingredient, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.numel for tensor in self.checkpoint.tensors.values())

    def dtypes(self) -> dict[str, int]:
        """Return dtype -> elements."""
        found: dict[str, int] = {}
        for tensor in self.checkpoint.tensors.values():
            found[tensor.dtype.torch_name] = found.get(tensor.dtype.torch_name, 0) + tensor.numel
        return found

    def layers(self) -> dict[str, int]:
        """Return elements per layer (``model.layers.0``), tensors outside of layers under their first name."""
        found: dict[str, int] = {}
        for name, tensor in self.checkpoint.tensors.items():
            found[layer_of(name)] = found.get(layer_of(name), 0) + tensor.numel
        return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))

    def groups(self) -> Iterator[Group]:
        """Yield the tensors, those that repeat in every layer once."""
        found: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            layer = split_layer(name)
            pattern = f"{layer.stack}.{{i}}.{layer.rest}" if layer else name
            numbers = found.setdefault((pattern, tensor.dtype.torch_name, tensor.shape), [])
            numbers += [layer.number] if layer else []
        for (pattern, dtype, shape), layers in sorted(found.items(), key=lambda item: natural_key(item[0][0])):
            yield Group(pattern, dtype, shape, tuple(sorted(layers)))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        checkpoint = self.checkpoint
        return {
            "checkpoint": checkpoint.label,
            "files": [{"name": file.path.name, "size": file.size} for file in checkpoint.files],
            "bytes": checkpoint.nbytes,
            "parameters": self.parameters,
            "dtypes": self.dtypes(),
            "layers": self.layers(),
            "metadata": dict(checkpoint.metadata),
            "architectures": checkpoint.config.get("architectures"),
            "tied": dict(checkpoint.tied),
            "notes": list(checkpoint.notes),
            "made_from": [asdict(each) for each in self.made_from],
            "tensors": [
                {"name": name, "dtype": tensor.dtype.torch_name, "shape": list(tensor.shape), "file": tensor.file.name}
                for name, tensor in checkpoint.tensors.items()
            ],
        }


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Return what is in a checkpoint."""
    return Inspection(checkpoint, made_from(checkpoint.root))


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Order numbers within names by value."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d{1,9})", name)]
