"""Setting entries of task vectors to zero by magnitude."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from merge_cli.kernels import compiled
from merge_cli.kernels.arrays import Array, empty

# No magnitude is as small.
_KEEP_ALL = -1.0


def keep_at_least(delta: Array, thresholds: Sequence[float], factors: Sequence[float] | None = None) -> Array:
    """Zero every entry whose magnitude is below its row's threshold, and multiply each row with its factor.

    Args:
        delta: Task vectors, shape ``(n, numel)``.
        thresholds: One per row, representable in float32; 0 keeps all, infinity keeps none.
        factors: One per row, by default 1.

    Returns:
        A new tensor of the same shape.

    Source:
        The trim step of TIES-Merging, Yadav et al. 2023, section 3, arXiv 2306.01708. The paper leaves ties in
        magnitude open; here every entry at the threshold is kept, so the result does not depend on order.
    """
    kept = empty(delta, *delta.shape)
    for row, out, threshold, factor in zip(delta, kept, thresholds, factors or [1.0] * len(delta), strict=True):
        # The largest magnitude that is dropped: the next smaller float32 makes the comparison inclusive.
        bound = float(np.nextafter(np.float32(threshold), np.float32(0))) if threshold > 0 else _KEEP_ALL
        if math.isinf(threshold):
            out[:] = 0
        elif compiled.can_take(row, out):
            compiled.trim(row, bound, factor, out)
        elif bound < 0:
            out.copy_(row).mul_(factor)
        else:
            import torch

            torch.ops.aten.hardshrink.out(row, bound, out=out).mul_(factor)
    return kept
