"""From numbers as they are stored to float32."""

import math

from torch import Tensor

from merge_cli.kernels import compiled


def widen(stored: Tensor, out: Tensor, less: Tensor | None = None) -> list[int]:
    """Convert rows to float32, and take the same from each.

    Args:
        stored: As they are stored, shape ``(n, numel)``, on any device; or ``out`` itself.
        out: Float32, the same shape, where to work; overwritten.
        less: What is subtracted, shape ``(numel,)``; None for nothing.

    Returns:
        How many numbers of each row are not finite as float32, before anything is subtracted.
    """
    if compiled.can_take(out) and (stored is out or compiled.is_bfloat16(stored)):
        return compiled.widen(stored, less, out)
    if stored is not out:
        # One conversion for all: a call costs as much as some ten thousand elements.
        out.copy_(stored)
    # Only where the sum is not finite can a number be; or it overflows.
    wrong = [0] * len(out) if math.isfinite(out.sum().item()) else [int((~row.isfinite()).sum()) for row in out]
    if less is not None:
        out.sub_(less)
    return wrong
