"""Casts between float32 and what checkpoints hold, in numpy, which has neither bfloat16 nor float8.

Rounding is to the nearest number, ties to even. Beyond the largest number comes infinity, and NaN in float8_e4m3fn,
which has no infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# One of PATTERNS.
Stored = NDArray[Any]
# How numpy holds the bits of what is stored.
PATTERNS = {
    "bfloat16": np.uint16,
    "float16": np.uint16,
    "float32": np.float32,
    "float64": np.float64,
    "float8_e4m3fn": np.uint8,
    "float8_e5m2": np.uint8,
}
# Elements worked on at a time: what is between two steps stays in the second cache.
_CHUNK = 2**15
_INFINITY = 0x7F80_0000
_BIAS = 127
_MANTISSA = 23


@dataclass(frozen=True, slots=True)
class _Format:
    """The bits of a narrow floating-point dtype.

    Attributes:
        bits: In all.
        mantissa: Bits that are stored of the mantissa.
        bias: Of the exponent.
        beyond: The pattern of what is beyond the largest number.
        nan: The pattern of NaN.
        nan_signed: Whether NaN is given the sign of what it comes from.
    """

    bits: int
    mantissa: int
    bias: int
    beyond: int
    nan: int
    nan_signed: bool = True

    @property
    def shift(self) -> int:
        """Bits of a float32's mantissa that are rounded off."""
        return _MANTISSA - self.mantissa

    @property
    def smallest_normal(self) -> int:
        """The float32 pattern of the smallest normal number."""
        return (_BIAS - self.bias + 1) << _MANTISSA


_FORMATS = {
    "bfloat16": _Format(16, 7, 127, 0x7F80, 0x7FC0, nan_signed=False),
    "float16": _Format(16, 10, 15, 0x7C00, 0x7E00),
    "float8_e4m3fn": _Format(8, 3, 7, 0x7F, 0x7F),
    "float8_e5m2": _Format(8, 2, 15, 0x7C, 0x7F),
}


def to_float32(stored: Stored, dtype: str, less: Floats | None, out: Floats) -> list[int]:
    """Convert rows to float32, take ``less`` from each, and return how many numbers of each were not finite."""
    with np.errstate(all="ignore"):
        if stored is not out:
            _decode(stored, dtype, out)
        wrong = [_nonfinite(row) for row in out]
        if less is not None:
            np.subtract(out, less, out=out)
    return wrong


def from_float32(numbers: Floats, dtype: str, out: Stored) -> int:
    """Round a row to the nearest numbers of a dtype, and return how many are not finite then."""
    with np.errstate(all="ignore"):
        if dtype not in _FORMATS:
            np.copyto(out, numbers)
            return _nonfinite(numbers)
        shape, wrong = _FORMATS[dtype], 0
        for at in range(0, len(numbers), _CHUNK):
            piece = slice(at, at + _CHUNK)
            wrong += _encode(numbers[piece], shape, out[piece])
    return wrong


def count_nonfinite(stored: Stored, dtype: str) -> int:
    """Return how many numbers are not finite in the dtype that they are stored in."""
    numbers, wrong = stored.reshape(-1), 0
    with np.errstate(all="ignore"):
        for at in range(0, len(numbers), _CHUNK):
            piece = numbers[at : at + _CHUNK]
            if dtype in _FORMATS:
                shape = _FORMATS[dtype]
                magnitudes = piece & piece.dtype.type(2 ** (shape.bits - 1) - 1)
                wrong += int(np.count_nonzero(magnitudes >= piece.dtype.type(shape.beyond)))
            else:
                wrong += _nonfinite(piece)
    return wrong


def _decode(stored: Stored, dtype: str, out: Floats) -> None:
    if dtype == "bfloat16":
        np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)
    elif dtype == "float16":
        np.copyto(out, stored.view(np.float16))
    elif dtype in _FORMATS:
        # Indexes of a byte cannot be out of the table; without that check numpy needs no buffer.
        np.take(_table(dtype), stored, out=out, mode="clip")
    else:
        np.copyto(out, stored, casting="same_kind")


@cache
def _table(dtype: str) -> Floats:
    """Return the number that each byte stands for in a float8."""
    shape = _FORMATS[dtype]
    magnitudes = np.arange(2 ** (shape.bits - 1), dtype=np.uint32)
    # Multiplying moves the exponent to its bias in float32, and settles subnormal numbers too.
    numbers = (magnitudes << shape.shift).view(np.float32) * np.float32(2.0 ** (_BIAS - shape.bias))
    numbers[shape.beyond :] = np.nan
    if shape.beyond != shape.nan:
        numbers[shape.beyond] = np.inf
    return np.concatenate([numbers, -numbers])


def _nonfinite(row: Floats) -> int:
    """Count what is not finite: nothing where the sum is; one that overflows takes a closer look."""
    return 0 if np.isfinite(row.sum()) else int(np.count_nonzero(~np.isfinite(row)))


def _encode(numbers: Floats, shape: _Format, out: Stored) -> int:
    bits = numbers.view(np.uint32)
    magnitudes = bits & np.uint32(2**31 - 1)
    rounded = magnitudes >> np.uint32(shape.shift)
    rounded &= np.uint32(1)
    # Numbers below the smallest normal one wrap around here; they are replaced below.
    rounded += np.uint32(2 ** (shape.shift - 1) - 1 - ((_BIAS - shape.bias) << _MANTISSA) & 2**32 - 1)
    rounded += magnitudes
    rounded >>= np.uint32(shape.shift)
    np.minimum(rounded, np.uint32(shape.beyond), out=rounded)
    if shape.bias != _BIAS and (small := magnitudes < np.uint32(shape.smallest_normal)).any():
        # Adding a number whose last bit is worth the smallest subnormal number lets the processor round to those.
        addend = np.float32(2.0 ** (_MANTISSA + 1 - shape.bias - shape.mantissa))
        subnormal = (magnitudes.view(np.float32) + addend).view(np.uint32) - addend.view(np.uint32)
        np.copyto(rounded, subnormal, where=small)
    wrong = int(np.count_nonzero(rounded >= np.uint32(shape.beyond)))
    signs = bits >> np.uint32(32 - shape.bits) & np.uint32(2 ** (shape.bits - 1))
    if wrong:
        nan = magnitudes > np.uint32(_INFINITY)
        rounded[nan] = shape.nan
        signs[nan & (not shape.nan_signed)] = 0
    np.bitwise_or(rounded, signs, out=rounded)
    np.copyto(out, rounded, casting="unsafe")
    return wrong
