"""Storage of Fishers, gradients and saved sums in safetensors files."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_cli.checkpoint import (
    Checkpoint,
    DType,
    Extent,
    Files,
    Layout,
    Reader,
    ShardWriter,
    Source,
    open_checkpoint,
    plan_shards,
)
from merge_cli.checkpoint.folder_lock import lock_folder, remove_locked_folder
from merge_cli.checkpoint.os_errors import write_errors
from merge_cli.errors import ResourceError
from merge_cli.stream.decode import read_whole

SHARD_BYTES = 5_000_000_000
# Elements that are scaled and written at a time.
_BLOCK_NUMEL = 2**22


def float_layout(shapes: Iterable[tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Layout:
    """Lay out float32 tensors of these names and shapes, in this order."""
    return plan_shards([(name, DType.F32, shape) for name, shape in shapes], shard_bytes=SHARD_BYTES, metadata=metadata)


def write_layout(folder: Path, layout: Layout, find: Callable[[str], Tensor], *, scale: float, sync: bool) -> None:
    """Write every tensor of a layout times ``scale``, and the index where there are several files.

    Args:
        folder: Where to.
        layout: Names and places.
        find: Gives the tensor of a name, in its shape, on any device, in any order of memory.
        scale: Factor.
        sync: Whether to return only when all of it is on the device.
    """
    with ShardWriter(folder, layout) as writer:
        for name, place in layout.targets.items():
            write_tensor(writer, place, find(name), scale=scale)
        if sync:
            writer.sync()
    index = layout.index()
    if index is not None:
        Files().write_new(folder / "model.safetensors.index.json", index, sync=sync)


def write_tensor(writer: ShardWriter, place: Extent, values: Tensor, *, scale: float) -> None:
    """Write a tensor times ``scale`` as float32, a block at a time."""
    if tuple(values.shape) != place.shape:
        raise ValueError(f"{place.name} is {tuple(values.shape)}, expected {place.shape}")
    flat = values.detach().reshape(-1)
    for start in range(0, max(1, flat.numel()), _BLOCK_NUMEL):
        block = flat[start : start + _BLOCK_NUMEL].to("cpu", torch.float32, copy=True).mul_(scale)
        writer.write(_bytes_of(block), place, start)


def read_tensor(reader: Reader, source: Source) -> Tensor:
    """Read a whole tensor of any floating-point type as float32."""
    return torch.from_numpy(read_whole(source, reader))


def read_all(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint as float32."""
    with Reader(checkpoint.files) as reader:
        return {name: read_tensor(reader, place) for name, place in checkpoint.tensors.items()}


def _bytes_of(flat: Tensor) -> memoryview:
    array: Any = flat.numpy()
    return memoryview(array).cast("B")


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[Path]:
    """Keep a folder of saved sums for this process alone; one in which nothing was saved goes again.

    Raises:
        ResourceError: If another process holds it, or it cannot be made.
        RecipeError: If it is none of ours.
    """
    files, busy = Files(), f"another process is measuring into {folder}"
    with lock_folder(folder, files, run="measurement", busy=busy) as lock:
        try:
            yield folder
        finally:
            if not any(folder.glob("*.safetensors")):
                remove_locked_folder(folder, lock, files)


def save_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a file by one that holds these tensors; it is complete under its name at any moment."""
    files, fresh = Files(), path.with_name(path.name + ".new")
    with write_errors(fresh):
        files.make_folder(fresh)
    layout = plan_shards(
        [(name, DType.F32, tuple(values.shape)) for name, values in tensors.items()],
        shard_bytes=2**62,
        metadata=metadata,
    )
    try:
        write_layout(fresh, layout, tensors.__getitem__, scale=1.0, sync=True)
    except ResourceError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    with write_errors(path):
        files.rename(fresh / "model.safetensors", path)
        files.remove_empty_folder(fresh)
    files.sync_folder(path.parent)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata that :func:`save_state` has written."""
    checkpoint = open_checkpoint(path)
    return read_all(checkpoint), dict(checkpoint.metadata)


def load_one(path: Path, name: str) -> Tensor:
    """Return one of the tensors that :func:`save_state` has written."""
    checkpoint = open_checkpoint(path)
    with Reader(checkpoint.files) as reader:
        return read_tensor(reader, checkpoint.tensors[name])
