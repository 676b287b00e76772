"""Buffers among a checkpoint's tensors: values that loaders compute, and statistics of activations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from merge_cli.checkpoint import Checkpoint, DType
from merge_cli.plan.misfits import patterns
from merge_cli.text import count_of, listed

# How the names of buffers end that a model has from its configuration: versions of libraries differ in keeping them.
_COMPUTED = (
    "inv_freq", "position_ids", "embeddings.token_type_ids", "masked_bias", "cos_cached", "sin_cached",
    "relative_position_index", "relative_coords_table", "embed_positions.weights", "._float_tensor", ".attn_mask",
)  # fmt: skip
_CAUSAL_MASK = ("attn.bias", "attention.bias")
_VARIANCE = "running_var"


def lacking_computed(name: str, parts: Sequence[Checkpoint]) -> list[str]:
    """Return which checkpoints lack a buffer that a loader computes anyway; empty for every other tensor."""
    if not name.endswith(_COMPUTED) and not _is_causal_mask(name, parts):
        return []
    return [part.label for part in parts if part.find(name) is None]


def _is_causal_mask(name: str, parts: Sequence[Checkpoint]) -> bool:
    """Tell whether it says which position sees which; models of other families have a parameter of that name."""
    if not name.endswith(_CAUSAL_MASK):
        return False
    held = [tensor for part in parts if (tensor := part.find(name)) is not None]
    return all(
        len(tensor.shape) == 4
        and (tensor.dtype in (DType.BOOL, DType.U8) or tensor.shape[:2] == (1, 1))
        and tensor.shape[2] == tensor.shape[3]
        for tensor in held
    )


def left_out_note(lacking: Mapping[str, Sequence[str]], names: Collection[str]) -> Iterator[str]:
    """Say which buffers the output does not have, and why.

    Args:
        lacking: Name of each -> the checkpoints that lack it.
        names: The names of all tensors.
    """
    if lacking:
        labels = dict.fromkeys(label for each in lacking.values() for label in each)
        yield (
            f"{listed(patterns(names, list(lacking)), most=3)} ({count_of(len(lacking), 'tensor')}) left out: "
            f"{listed(labels, most=3)} lack{'s' if len(labels) == 1 else ''} what a loader computes anyway"
        )


def is_variance(name: str) -> bool:
    """Tell whether it holds variances of activations, which are never negative."""
    return name.rpartition(".")[2] == _VARIANCE


def statistics_note(names: Collection[str]) -> Iterator[str]:
    """Say that running statistics of activations are those of no model that was run."""
    found = [name for name in names if is_variance(name)]
    if found:
        yield (
            f"running statistics ({count_of(len(found), 'batch normalisation')}) are merged like weights, no variance "
            "below the smallest of the inputs; measure them again on data: a few batches in training mode"
        )
