"""Checkpoints made from checkpoints, without reading a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from merge_cli.checkpoint.open import Checkpoint


def renamed(checkpoint: Checkpoint, names: Mapping[str, str], note: str) -> Checkpoint:
    """Return a checkpoint that has the same tensors under other names.

    Each :class:`StoredTensor` keeps the name by which its file knows it, for errors and for the model's identity.

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
