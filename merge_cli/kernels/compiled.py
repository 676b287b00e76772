"""Kernels that are compiled from C where the installation found a compiler; elsewhere torch and numpy do the same.

Each function stands for one of the same name in this package, which calls it where :func:`can_take` says so. Results
are the same to the bit, but for :func:`gram`, whose float64 sums are added in another order.

Measured on one core (AVX2), ns per element against torch or numpy: conversion less the base 0.10 against 0.19, trimming
0.08 against 0.14, looking inside a bracket 0.17 against 0.7, a disjoint merge of three models 0.6 against 2.0, a random
mask 0.11 to 0.26 against 0.28 to 0.35, inner products 0.27 against 0.7. It is C and not numba, because loading numba
with its cached functions takes every process 0.3 s, and this library nothing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# What the source says of itself; a library that was built from another one is not used.
_VERSION = 1
_SWITCH = "MERGE_CLI_COMPILED"


def _load() -> ctypes.CDLL | None:
    """Return the library, or None where there is none, or where the environment asks to do without."""
    spec = find_spec("_merge_cli_kernels")
    if spec is None or spec.origin is None or os.environ.get(_SWITCH) == "0":
        return None
    library = ctypes.CDLL(spec.origin)
    if ctypes.c_int32.in_dll(library, "version").value != _VERSION:
        return None
    pointer, numel, number, flag, word = (
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int, ctypes.c_uint32,
    )  # fmt: skip
    signatures = {
        "widen_bfloat16": [pointer, pointer, pointer, pointer, numel, numel],
        "widen_float32": [pointer, pointer, pointer, numel, numel],
        "trim": [pointer, number, number, pointer, numel],
        "look": [pointer, number, number, pointer, pointer, numel],
        "disjoint_merge": [pointer, pointer, numel, flag, flag, flag, number, pointer, numel],
        "drop": [pointer, pointer, word, word, word, pointer, numel],
        "gram": [pointer, pointer, numel, pointer, numel],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = numel if name == "look" else None
    return library


LIBRARY = _load()


def can_take(*tensors: Tensor) -> bool:
    """Whether there are compiled kernels, and these tensors are what they work on: contiguous float32 on the CPU."""
    return LIBRARY is not None and all([_is_plain(tensor, torch.float32) for tensor in tensors])


def is_bfloat16(stored: Tensor) -> bool:
    """Whether :func:`widen` can convert what is stored: contiguous bfloat16 on the CPU."""
    return _is_plain(stored, torch.bfloat16)


def _is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous()


def widen(stored: Tensor, less: Tensor | None, out: Tensor) -> list[int]:
    """Convert rows to float32, take ``less`` from each, and return how many numbers of each were not finite.

    Args:
        stored: Bfloat16, shape ``(n, numel)``, or ``out`` itself.
        less: What is subtracted, shape ``(numel,)``, if anything.
        out: Where the result goes.
    """
    assert LIBRARY is not None
    n, numel = out.shape
    wrong = (ctypes.c_int64 * n)()
    subtracted = less.data_ptr() if less is not None else None
    if stored is out:
        LIBRARY.widen_float32(out.data_ptr(), subtracted, wrong, n, numel)
    else:
        LIBRARY.widen_bfloat16(stored.data_ptr(), subtracted, out.data_ptr(), wrong, n, numel)
    return list(wrong)


def trim(row: Tensor, bound: float, factor: float, out: Tensor) -> None:
    """Zero what is no larger in magnitude than ``bound``, and multiply the rest."""
    assert LIBRARY is not None
    LIBRARY.trim(row.data_ptr(), bound, factor, out.data_ptr(), out.numel())


def look(row: Tensor, low: float, high: float) -> tuple[int, NDArray[np.int32]]:
    """Return how many magnitudes lie from ``high`` on, and the bit patterns of those in [low, high) less ``low``'s."""
    assert LIBRARY is not None
    inside, above = np.empty(row.numel(), dtype=np.int32), ctypes.c_int64()
    found = LIBRARY.look(row.data_ptr(), low, high, inside.ctypes.data, ctypes.byref(above), row.numel())
    return above.value, inside[:found]


def disjoint_merge(
    weighted: Tensor, weights: Sequence[float], *, by_count: bool, plus: bool, least_divisor: float | None
) -> Tensor:
    """Sum what agrees with the elected sign, shape ``(numel,)``.

    Args:
        weighted: Weighted task vectors, shape ``(n, numel)``.
        weights: The weights.
        by_count: Whether the number of entries per side elects, not their sum.
        plus: Whether a balanced vote elects +.
        least_divisor: The sum is divided by the weights of those who agree where they come to at least this; None
            divides nowhere.
    """
    assert LIBRARY is not None
    n, numel = weighted.shape
    out = torch.empty(numel)
    LIBRARY.disjoint_merge(
        weighted.data_ptr(),
        (ctypes.c_float * n)(*weights),
        n,
        by_count,
        plus,
        least_divisor is not None,
        least_divisor or 0.0,
        out.data_ptr(),
        numel,
    )
    return out


def drop(row: Tensor | None, key: Sequence[int], start: int, limit: int, rest: int, out: Tensor) -> None:
    """Multiply a row, or ones, with a random mask.

    Args:
        row: The row; None for the mask alone.
        key: The halves of the key of the words that four elements share, and of those of an element's own.
        start: Index of the first element, in 32 bits.
        limit: Drawn bytes below it keep their elements.
        rest: Where a byte is the limit, the element's own word below this keeps it; 0 if none does.
        out: Where the result goes.
    """
    assert LIBRARY is not None
    address = row.data_ptr() if row is not None else None
    LIBRARY.drop(address, (ctypes.c_uint32 * len(key))(*key), start, limit, rest, out.data_ptr(), out.numel())


def gram(first: Tensor, second: Tensor, grain: int) -> Tensor:
    """Sum squares and products of two rows over runs of ``grain`` elements, in float64: shape ``(runs, 3)``."""
    assert LIBRARY is not None
    sums = torch.empty(-(-first.numel() // grain), 3, dtype=torch.float64)
    LIBRARY.gram(first.data_ptr(), second.data_ptr(), grain, sums.data_ptr(), first.numel())
    return sums
