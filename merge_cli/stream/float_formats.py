"""Coarseness of a dtype: what rounding to it does to numbers, and the distance between its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merge_cli.checkpoint import DType
from merge_cli.kernels import PATTERNS, from_float32, to_float32

Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Coarseness:
    """The distance from 1 to the next number, and the smallest number that has all its digits."""

    eps: float
    smallest_normal: float


COARSENESS = {
    DType.F8_E4M3: Coarseness(2.0**-3, 2.0**-6),
    DType.F8_E5M2: Coarseness(2.0**-2, 2.0**-14),
    DType.F16: Coarseness(2.0**-10, 2.0**-14),
    DType.BF16: Coarseness(2.0**-7, 2.0**-126),
    DType.F32: Coarseness(2.0**-23, 2.0**-126),
    DType.F64: Coarseness(2.0**-52, 2.0**-1022),
}


def rounded(numbers: Numbers, dtype: DType) -> Numbers:
    """Return numbers as a dtype would hold them."""
    held, out = np.empty(len(numbers), PATTERNS[dtype.torch_name]), np.empty((1, len(numbers)), np.float32)
    from_float32(np.ascontiguousarray(numbers), dtype.torch_name, held)  # type: ignore[arg-type]
    to_float32(held[None], dtype.torch_name, out)  # type: ignore[arg-type]
    row: Numbers = out[0]
    return row


def step(magnitudes: Numbers, dtype: DType) -> Numbers:
    """Return the distance between neighbouring numbers of a dtype at each magnitude."""
    told = COARSENESS[dtype]
    # frexp gives mantissas in [0.5, 1), so the power of two below a number has an exponent that is one less.
    exponents = np.frexp(np.maximum(magnitudes, np.float32(told.smallest_normal)))[1] - 1
    steps: Numbers = np.ldexp(np.float32(told.eps), exponents)
    return steps


def finite(numbers: Numbers) -> Numbers:
    """Return numbers with zero in the place of what is not finite."""
    cleaned: Numbers = np.nan_to_num(numbers, nan=0.0, posinf=0.0, neginf=0.0)
    return cleaned
