"""The checkpoint type: tensor names and their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.header import FileIdentity
from merge_cli.checkpoint.sources import Source


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as its headers describe it, or a view of checkpoints.

    Attributes:
        label: What the recipe calls it.
        root: The folder, or the weight file itself.
        tensors: Every tensor once, in the order of files and of bytes, by its name without what a wrapper put there.
        tied: Further names of tied tensors -> the name in ``tensors``.
        files: The identity of each weight file, in order.
        metadata: The ``__metadata__`` of the first file.
        config: ``config.json``, empty where there is none; without what it says of a quantisation.
        notes: What was found out of the ordinary and set right, in sentences.
    """

    label: str
    root: Path
    tensors: Mapping[str, Source]
    tied: Mapping[str, str]
    files: tuple[FileIdentity, ...]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def find(self, name: str) -> Source | None:
        """Return the tensor of this name, a tied tensor under any of its names, or None."""
        return self.tensors.get(self.tied.get(name, name))
