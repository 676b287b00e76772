"""Small amounts of stored numbers as numpy's float32, and how coarse a dtype is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merge_cli.checkpoint import DType, to_torch

Numbers = NDArray[np.float32]
_IN_NUMPY = {DType.F16: np.float16, DType.F32: np.float32, DType.F64: np.float64}


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


def as_float32(raw: bytearray, dtype: DType) -> Numbers:
    """Return numbers as they are stored as float32, what is not finite as zero."""
    return finite(widened(raw, dtype))


def widened(raw: bytearray, dtype: DType) -> Numbers:
    """Return numbers as they are stored as float32."""
    if dtype is DType.BF16:
        numbers = (np.frombuffer(raw, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif dtype in _IN_NUMPY:
        with np.errstate(over="ignore"):
            numbers = np.frombuffer(raw, _IN_NUMPY[dtype]).astype(np.float32)
    else:
        import torch

        numbers = torch.frombuffer(raw, dtype=to_torch(dtype)).to(torch.float32).numpy()
    return numbers


def rounded(numbers: Numbers, dtype: DType) -> Numbers:
    """Return numbers as a dtype would hold them."""
    if dtype is DType.BF16:
        bits = numbers.view(np.uint32)
        kept = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
        return kept.view(np.float32)
    if dtype in _IN_NUMPY:
        with np.errstate(over="ignore"):
            return numbers.astype(_IN_NUMPY[dtype]).astype(np.float32)
    import torch

    held: Numbers = torch.from_numpy(numbers).to(to_torch(dtype)).to(torch.float32).numpy()
    return held


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
