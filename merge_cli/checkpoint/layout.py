"""Layout of an output checkpoint: the shard and the offset of every tensor, planned before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from merge_cli.checkpoint.dtypes import DType
from merge_cli.checkpoint.extent import Extent
from merge_cli.checkpoint.header import encode_header


@dataclass(frozen=True)
class Shard:
    """One output file: its header, its size in bytes, and its tensors (``file`` is relative to the checkpoint)."""

    file: str
    header: bytes
    size: int
    tensors: tuple[Extent, ...]


@dataclass(frozen=True)
class Layout:
    """The files of an output checkpoint."""

    shards: tuple[Shard, ...]

    @cached_property
    def nbytes(self) -> int:
        """Size of all files in bytes, headers included."""
        return sum(shard.size for shard in self.shards)

    @cached_property
    def targets(self) -> Mapping[str, Extent]:
        """Tensor name -> where it lies."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    def index(self) -> bytes | None:
        """Return ``model.safetensors.index.json`` the way transformers writes it; None for a single file."""
        if len(self.shards) == 1:
            return None
        total = sum(tensor.nbytes for tensor in self.targets.values())
        parameters = sum(tensor.numel for tensor in self.targets.values())
        weight_map = {name: self.targets[name].file.name for name in sorted(self.targets)}
        content = {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": weight_map}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def plan_shards(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], *, shard_bytes: int, metadata: Mapping[str, str]
) -> Layout:
    """Distribute tensors over shards of at most ``shard_bytes`` in the order given, the way transformers does.

    A larger tensor gets a shard of its own, and the shard that was being filled goes on. Within a shard the tensors of
    wider types come first, so that each starts at a multiple of its item size.
    """
    nowhere = Path()
    groups: list[list[Extent]] = []
    current: list[Extent] = []
    filled = 0
    for name, dtype, shape in tensors:
        tensor = Extent(name, dtype, shape, nowhere, 0)
        if tensor.nbytes > shard_bytes:
            groups.append([tensor])
            continue
        if filled + tensor.nbytes > shard_bytes:
            groups.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += tensor.nbytes
    if current or not groups:
        groups.append(current)
    return Layout(tuple(_shard(group, number, len(groups), metadata) for number, group in enumerate(groups, start=1)))


def _shard(tensors: list[Extent], number: int, count: int, metadata: Mapping[str, str]) -> Shard:
    file = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
    path = Path(file)
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    starts: list[int] = []
    for tensor in ordered:
        starts.append(position)
        offsets = [position, position + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype.value, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    header = encode_header(entries)
    placed = tuple(
        Extent(tensor.name, tensor.dtype, tensor.shape, path, len(header) + start)
        for tensor, start in zip(ordered, starts, strict=True)
    )
    return Shard(file, header, len(header) + position, placed)
