"""What narrow floating-point dtypes hold, from the definition of their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Name -> bits, of which mantissa; patterns of the largest finite number and of infinity (NaN where there is none).
FORMATS = {
    "bfloat16": (16, 7, 0x7F7F, 0x7F80),
    "float16": (16, 10, 0x7BFF, 0x7C00),
    "float8_e4m3fn": (8, 3, 0x7E, 0x7F),
    "float8_e5m2": (8, 2, 0x7B, 0x7C),
}


def pattern_of(tensor: Tensor) -> Any:
    """Return what numpy holds of a tensor, in the same memory: its bit patterns where it has no such dtype."""
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor.numpy()
    return tensor.view({1: torch.uint8, 2: torch.uint16}[tensor.element_size()]).numpy()


def magnitudes(name: str) -> NDArray[np.float64]:
    """Return the numbers that patterns from 0 to the largest finite one stand for, and that which would come next."""
    bits, mantissa, largest, _ = FORMATS[name]
    bias = 2 ** (bits - mantissa - 2) - 1
    found = []
    for pattern in range(largest + 2):
        exponent, fraction = divmod(pattern, 2**mantissa)
        leading = 2**mantissa if exponent else 0
        found.append((leading + fraction) * 2.0 ** (max(exponent, 1) - bias - mantissa))
    return np.array(found)


def nearest(numbers: NDArray[np.float32], name: str) -> NDArray[np.int64]:
    """Round by looking at both neighbours, ties to the even pattern; what rounds to no finite number is infinite."""
    bits, _, largest, infinity = FORMATS[name]
    known, wide = magnitudes(name), np.abs(numbers.astype(np.float64))
    above = np.clip(np.searchsorted(known, wide), 1, largest + 1)
    to_lower, to_upper = wide - known[above - 1], known[above] - wide
    patterns = np.where((to_lower < to_upper) | ((to_lower == to_upper) & (above % 2 == 1)), above - 1, above)
    patterns[patterns > largest] = infinity
    return patterns | np.where(np.signbit(numbers), 2 ** (bits - 1), 0)
