"""Casts between stored dtypes and float32."""

from __future__ import annotations

from merge_cli.kernels import numpy_casts
from merge_cli.kernels.backend import Array, backend_of
from merge_cli.kernels.numpy_casts import Stored


def to_float32(stored: Array, dtype: str, out: Array, less: Array | None = None) -> list[int]:
    """Convert rows to float32, and take the same from each.

    Args:
        stored: As they are stored, shape ``(n, numel)``: a tensor of any dtype, on any device; or an array of
            :data:`~merge_cli.kernels.PATTERNS`; or ``out`` itself.
        dtype: The name of the dtype that is stored.
        out: Float32, the same shape, where to work; overwritten.
        less: What is subtracted, shape ``(numel,)``; None for nothing.

    Returns:
        How many numbers of each row are not finite as float32, before anything is subtracted.
    """
    return backend_of(out).to_float32(stored, dtype, less, out)


def from_float32(numbers: Array, dtype: str, out: Array) -> int:
    """Round a row to the nearest numbers of a dtype, and return how many are not finite then.

    Args:
        numbers: Float32, shape ``(numel,)``, contiguous.
        dtype: The name of the dtype.
        out: The same shape, of the dtype or an array of :data:`~merge_cli.kernels.PATTERNS`; overwritten.

    Returns:
        How many are NaN, infinite or beyond the largest number of the dtype.
    """
    return backend_of(numbers).from_float32(numbers, dtype, out)


def count_nonfinite(stored: Stored, dtype: str) -> int:
    """Return how many numbers are NaN or infinite in the dtype that they are stored in.

    Args:
        stored: An array of :data:`~merge_cli.kernels.PATTERNS`.
        dtype: The name of the dtype.
    """
    return numpy_casts.count_nonfinite(stored, dtype)
