"""How far gradients are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_norm(values: Tensor, curvature: Tensor) -> float:
    """Return the square of the norm in the metric of 1 / H_0; where that has no curvature, nothing may differ."""
    squares = values.square()
    return float(torch.where(squares > 0, squares / curvature, 0.0).sum())
