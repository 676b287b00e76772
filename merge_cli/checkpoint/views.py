"""Checkpoints made from checkpoints: the same numbers under other names, with their scales, or in other layers.

A view changes what a checkpoint says that it holds, and nothing is read for it; views compose. Whoever plans, merges or
writes never hears of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merge_cli.checkpoint.checkpoint import Checkpoint
from merge_cli.checkpoint.layers import layer_stacks, split_layer, with_layers
from merge_cli.checkpoint.quantised import without_quantisation
from merge_cli.checkpoint.sources import BlockScaled, Source, StoredTensor
from merge_cli.errors import CheckpointError
from merge_cli.text import count_of, listed

# How the names of the scales go on where that of the numbers ends; all of them are multiplied with.
_TILE_SCALES, _ROW_SCALES = "_scale_inv", "_scale"
# Scales of activations and of the cache, which belong to running the model in float8 and not to its weights.
_OF_ACTIVATIONS = re.compile(r"(^|[._])((input|output|k|v|q|prob)_scale|input_scale_ub)$")
# The tiles of checkpoints whose configuration does not say.
_USUAL_TILE = (128, 128)
_NARROWEST = 1
# Parts of the names of what stands below the layers; all else outside of them stands above.
_EMBEDDING_PARTS = ("embed", "wte", "wpe", "shared.weight")


def renamed(checkpoint: Checkpoint, names: Mapping[str, str], note: str) -> Checkpoint:
    """Return a checkpoint that has the same tensors under other names.

    Each source keeps the name by which its file knows it, for errors and for the model's identity.

    Args:
        checkpoint: What is renamed.
        names: Old name -> new name; those that do not stand there stay. No two tensors may get one name.
        note: What was done, as a sentence.

    Raises:
        ValueError: If two tensors got the same name.
    """
    tensors = {names.get(name, name): tensor for name, tensor in checkpoint.tensors.items()}
    tied = {names.get(name, name): names.get(first, first) for name, first in checkpoint.tied.items()}
    if len(tensors.keys() | tied.keys()) < len(checkpoint.tensors) + len(checkpoint.tied):
        raise ValueError("two tensors got the same name")
    return replace(checkpoint, tensors=tensors, tied=tied, notes=(*checkpoint.notes, note))


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose float8 weights are multiplied with the scales that stand beside them.

    These are ``weight_scale_inv`` of 128 x 128 tiles (DeepSeek, Qwen3), and ``weight_scale`` for the tensor or for each
    of its rows (compressed-tensors, fbgemm, ModelOpt). Scales of activations are left out, as is what the configuration
    says of the quantisation. A checkpoint that holds anything else in float8, or integers with scales, stays as it is.

    Raises:
        CheckpointError: If scales have a shape that goes with no tiles of their weight.
    """
    tensors = checkpoint.tensors
    narrow = {name for name, tensor in tensors.items() if tensor.dtype.is_float and tensor.dtype.itemsize == _NARROWEST}
    scales = {name: found for name in narrow if (found := _scales_of(name, tensors)) is not None}
    if not scales or narrow != scales.keys():
        return checkpoint
    held = {scale for scale in scales.values()}
    beside = [name for name in tensors if name not in held and _OF_ACTIVATIONS.search(name)]
    left: dict[str, Source] = {}
    for name, tensor in tensors.items():
        if name in scales:
            left[name] = _scaled(checkpoint, tensor, tensors[scales[name]])
        elif name not in held and name not in beside:
            left[name] = tensor
    note = f"float8 numbers ({count_of(len(scales), 'tensor')}) are multiplied with their scales"
    if beside:
        note += f"; those of activations ({count_of(len(beside), 'tensor')}) are left out"
    return replace(
        checkpoint,
        tensors=left,
        config=without_quantisation(checkpoint.config),
        notes=(*checkpoint.notes, note),
    )


def _scales_of(name: str, tensors: Mapping[str, Source]) -> str | None:
    """Return the only scales beside a float8 tensor; None where there are none, or further ones for a second step."""
    # Tensors of other names than ``weight`` have parameters called scale beside them.
    endings = (_TILE_SCALES, _ROW_SCALES) if name.endswith("weight") else (_TILE_SCALES,)
    found = [name + ending for ending in endings if name + ending in tensors]
    further = [f"{name}{ending}" for ending in ("_scale_2", "_zero_point", "_global_scale")]
    if len(found) != 1 or any(each in tensors for each in further):
        return None
    scale = tensors[found[0]]
    return found[0] if scale.dtype.is_float and scale.dtype.itemsize > _NARROWEST else None


def _scaled(checkpoint: Checkpoint, stored: Source, scales: Source) -> Source:
    assert isinstance(stored, StoredTensor)
    assert isinstance(scales, StoredTensor)
    for tile in _tiles(stored.shape, scales, checkpoint.config):
        if scales.numel == 1 or scales.shape == _grid(stored.shape, tile):
            return BlockScaled(stored, scales, tile)
        if tile[0] == 1 and scales.shape == stored.shape[:-1]:
            return BlockScaled(stored, scales, tile)
    raise CheckpointError(
        f"{checkpoint.root}: '{scales.name}' of shape {list(scales.shape)} scales no tiles of '{stored.name}' of shape "
        f"{list(stored.shape)}; expected one scale, one for each row, or one for each tile of 128 x 128",
        hint="its config.json says weight_block_size where tiles are of another size; is it that of this model?",
    )


def _tiles(shape: tuple[int, ...], scales: StoredTensor, config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the tiles that scales may belong to: the whole tensor, its rows, what the configuration says, 128 x 128."""
    columns = shape[-1] if shape else 1
    rows = shape[-2] if len(shape) > 1 else 1
    if scales.numel == 1:
        yield max(1, rows), max(1, columns)
    said = _block_size(config)
    yield said if said is not None else _USUAL_TILE
    yield 1, max(1, columns)


def _block_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the size of tiles that a configuration, or that of a part of the model, gives."""
    for key, value in config.items():
        if key == "weight_block_size" and isinstance(value, list) and len(value) == 2:
            if all(type(each) is int and each > 0 for each in value):
                return value[0], value[1]
        elif key.endswith("_config") and isinstance(value, dict) and (found := _block_size(value)) is not None:
            return found
    return None


def _grid(shape: tuple[int, ...], tile: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the scales of a tensor in tiles."""
    if len(shape) < 2:
        return ()
    return (*shape[:-2], -(-shape[-2] // tile[0]), -(-shape[-1] // tile[1]))


@dataclass(frozen=True)
class Run:
    """Layers ``first`` to ``end``, without the latter, of a checkpoint."""

    checkpoint: Checkpoint
    first: int
    end: int


def stacked(runs: Sequence[Run], *, label: str) -> Checkpoint:
    """Return a checkpoint whose layers are those of the runs, one run above the other.

    What stands outside of the layers comes from the checkpoint of the first run where it is an embedding, from that of
    the last where it follows the layers (a final normalisation, a head). The configuration is that of the first, with
    the new number of layers.

    Args:
        runs: From the bottom to the top; each checkpoint must have its layers in one stack of the same name.
        label: What to call the result.

    Raises:
        CheckpointError: If a checkpoint has several stacks or none, or not the layers of its run.
    """
    stacks = [_stack(run) for run in runs]
    first, last = runs[0].checkpoint, runs[-1].checkpoint
    tensors = {name: each for name, each in _outside(first, stacks[0][0]) if _comes_first(name)}
    kept: list[tuple[Mapping[str, Any], int]] = []
    for run, (stack, _) in zip(runs, stacks, strict=True):
        tensors |= _moved(run, stack, f"{stacks[0][0]}.", len(kept) - run.first)
        kept += [(run.checkpoint.config, number) for number in range(run.first, run.end)]
    tensors |= {name: each for name, each in _outside(last, stacks[-1][0]) if not _comes_first(name)}
    return Checkpoint(
        label=label,
        root=first.root,
        tensors=tensors,
        tied={name: other for name, other in last.tied.items() if name not in tensors and other in tensors},
        files=tuple(dict.fromkeys(file for run in runs for file in run.checkpoint.files)),
        metadata=first.metadata,
        config=with_layers(first.config, kept, stacks[0][1]),
        notes=tuple(dict.fromkeys(note for run in runs for note in run.checkpoint.notes)),
    )


def _moved(run: Run, stack: str, to: str, by: int) -> dict[str, Source]:
    """Return the tensors of a run's layers by the names of other layers."""
    layers = ((split_layer(name), tensor) for name, tensor in run.checkpoint.tensors.items())
    return {
        f"{to}{layer.number + by}.{layer.rest}": tensor
        for layer, tensor in layers
        if layer is not None and layer.stack == stack and run.first <= layer.number < run.end
    }


def _stack(run: Run) -> tuple[str, int]:
    """Return the name of a checkpoint's only stack of layers, and its height."""
    checkpoint = run.checkpoint
    found = layer_stacks(checkpoint.tensors, checkpoint.config)
    if len(found) != 1:
        raise CheckpointError(
            f"{checkpoint.label} has its layers in {len(found)} stacks ({listed(found, most=3)}), expected one",
            hint="layers of models with several parts cannot be stacked this way",
        )
    ((stack, height),) = found.items()
    if not 0 <= run.first < run.end <= height:
        raise CheckpointError(
            f"{checkpoint.label} has {height} layers, the range is [{run.first}, {run.end}]",
            hint=f"a range [first, end] takes layers first to end - 1; give one within [0, {height}]",
        )
    return stack, height


def _outside(checkpoint: Checkpoint, stack: str) -> Iterator[tuple[str, Source]]:
    """Yield the tensors that are in no layer of a stack."""
    for name, tensor in checkpoint.tensors.items():
        layer = split_layer(name)
        if layer is None or layer.stack != stack:
            yield name, tensor


def _comes_first(name: str) -> bool:
    """Tell whether a tensor outside of the layers stands before them."""
    return any(part in name for part in _EMBEDDING_PARTS)
