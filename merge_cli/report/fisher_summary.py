"""Summary statistics of a Fisher, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from merge_cli.checkpoint import Checkpoint, Reader
from merge_cli.checkpoint.layers import layer_of
from merge_cli.report.inspection import natural_key
from merge_cli.stream.decode import in_blocks


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a Fisher.

    Attributes:
        numel: Elements.
        mean: Their mean.
        zeros: Share of them that is exactly zero, in [0, 1].
        largest: The largest.
    """

    numel: int
    mean: float
    zeros: float
    largest: float


def summarize_fisher(checkpoint: Checkpoint) -> dict[str, LayerSummary]:
    """Read a Fisher block by block and return layer -> summary; empty for a checkpoint that is none."""
    if checkpoint.metadata.get("kind") not in ("fisher", "precision"):
        return {}
    found: dict[str, list[tuple[int, float, int, float]]] = {}
    with Reader(checkpoint.files) as reader:
        for name in sorted(checkpoint.tensors, key=natural_key):
            for values in in_blocks(checkpoint.tensors[name], reader, np.float64):
                part = (len(values), float(values.sum()), int((values == 0).sum()), float(values.max()))
                found.setdefault(layer_of(name), []).append(part)
    return {layer: _summary(parts) for layer, parts in found.items()}


def _summary(parts: list[tuple[int, float, int, float]]) -> LayerSummary:
    numel = sum(part[0] for part in parts)
    total, zeros = math.fsum(part[1] for part in parts), sum(part[2] for part in parts)
    return LayerSummary(numel, total / numel, zeros / numel, max(part[3] for part in parts))
