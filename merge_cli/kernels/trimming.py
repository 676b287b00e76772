"""Setting entries of task vectors to zero by magnitude."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keep_at_least(delta: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Zero every entry whose magnitude is below its row's threshold.

    Args:
        delta: Task vectors, shape ``(n, numel)``.
        thresholds: One per row, representable in float32; 0 keeps all, infinity keeps none.

    Returns:
        A new tensor of the same shape.

    Source:
        The trim step of TIES-Merging, Yadav et al. 2023, section 3, arXiv 2306.01708. The paper leaves ties in
        magnitude open; here every entry at the threshold is kept, so the result does not depend on order.
    """
    kept = torch.empty_like(delta)
    for row, out, threshold in zip(delta, kept, thresholds, strict=True):
        if threshold <= 0:
            out.copy_(row)
        elif math.isinf(threshold):
            out.zero_()
        else:
            # hardshrink drops |x| <= its bound; the next smaller float32 makes the comparison inclusive.
            below = float(np.nextafter(np.float32(threshold), np.float32(0)))
            torch.ops.aten.hardshrink.out(row, below, out=out)
    return kept
