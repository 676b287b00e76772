"""From numbers as they are stored to float32, and back."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from merge_cli.kernels import compiled
from merge_cli.kernels.arrays import Array, is_numpy

# How numpy holds the bits of what is stored; it has no bfloat16.
PATTERNS = {"bfloat16": np.uint16, "float16": np.uint16, "float32": np.float32}


def widen(stored: Array, dtype: str, out: Array, less: Array | None = None) -> list[int]:
    """Convert rows to float32, and take the same from each.

    Args:
        stored: As they are stored, shape ``(n, numel)``: a tensor of any dtype, on any device; or an array of
            :data:`PATTERNS`; or ``out`` itself.
        dtype: The name of the dtype that is stored.
        out: Float32, the same shape, where to work; overwritten.
        less: What is subtracted, shape ``(numel,)``; None for nothing.

    Returns:
        How many numbers of each row are not finite as float32, before anything is subtracted.
    """
    if compiled.can_take(out) and (stored is out or _is_narrow(stored, dtype)):
        return compiled.widen(stored, dtype, less, out)
    if stored is not out:
        # One conversion for all: a call costs as much as some ten thousand elements.
        out.copy_(stored)
    # Only where the sum is not finite can a number be; or it overflows.
    wrong = [0] * len(out) if math.isfinite(out.sum().item()) else [int((~row.isfinite()).sum()) for row in out]
    if less is not None:
        out -= less
    return wrong


def _is_narrow(stored: Array, dtype: str) -> bool:
    if dtype not in ("bfloat16", "float16"):
        return False
    return is_numpy(stored) or (stored.is_cpu and stored.is_contiguous())


def narrow(numbers: NDArray[np.float32], dtype: str, out: NDArray[np.generic]) -> int:
    """Round a row to the nearest numbers of a dtype, and return how many are not finite then: compiled only.

    Args:
        numbers: Shape ``(numel,)``, contiguous.
        dtype: One of :data:`PATTERNS`.
        out: The same shape, its bit patterns; overwritten.
    """
    if dtype == "float32":
        out[:] = numbers
        return compiled.widen(out[None], dtype, None, out[None])[0]  # type: ignore[arg-type]
    return compiled.narrow(numbers, dtype, out)  # type: ignore[arg-type]
