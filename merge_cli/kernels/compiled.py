"""Kernels that are compiled from C where the installation found a compiler; elsewhere torch and numpy do the same.

Each function stands for one of the same name in this package, which calls it where :func:`can_take` says so, for numpy
arrays always: these are only made where there are compiled kernels. Results are the same to the bit, but for
:func:`gram`, whose float64 sums are added in another order.

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merge_cli.kernels.arrays import Array, empty, is_numpy

# What the source says of itself; a library that was built from another one is not used.
_VERSION = 2
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
        "widen_float16": [pointer, pointer, pointer, pointer, numel, numel],
        "widen_float32": [pointer, pointer, pointer, numel, numel],
        "narrow_bfloat16": [pointer, pointer, numel],
        "narrow_float16": [pointer, pointer, numel],
        "trim": [pointer, number, number, pointer, numel],
        "look": [pointer, number, number, pointer, pointer, numel],
        "disjoint_merge": [pointer, pointer, numel, flag, flag, flag, number, pointer, numel],
        "weighted_sum": [pointer, pointer, numel, pointer, numel],
        "drop": [pointer, pointer, word, word, word, pointer, numel],
        "gram": [pointer, pointer, numel, pointer, numel],
        "page_sums": [pointer, pointer, numel, pointer, numel],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = numel if name in ("look", "narrow_bfloat16", "narrow_float16") else None
    return library


LIBRARY = _load()


def can_take(*arrays: Array) -> bool:
    """Whether there are compiled kernels, and these arrays are what they work on: contiguous float32 on the CPU."""
    return LIBRARY is not None and all([_is_plain(array) for array in arrays])


def _is_plain(array: Array) -> bool:
    if is_numpy(array):
        return array.dtype == np.float32 and array.flags.c_contiguous
    import torch

    return array.dtype is torch.float32 and array.is_cpu and array.is_contiguous()


def _check_alike(*arrays: Any) -> None:
    """Refuse arrays of different shapes: the kernels would read beyond the shorter one."""
    if any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"arrays of different shapes: {', '.join(str(tuple(array.shape)) for array in arrays)}")


def _address(array: Any) -> int:
    address: int = array.ctypes.data if is_numpy(array) else array.data_ptr()
    return address


def widen(stored: Array, dtype: str, less: Array | None, out: Array) -> list[int]:
    """Convert rows to float32, take ``less`` from each, and return how many numbers of each were not finite.

    Args:
        stored: Shape ``(n, numel)``, contiguous; ``out`` itself for float32.
        dtype: What is stored: ``bfloat16``, ``float16`` or ``float32``.
        less: What is subtracted, shape ``(numel,)``, if anything.
        out: Where the result goes.
    """
    assert LIBRARY is not None
    _check_alike(stored, out)
    n, numel = out.shape
    wrong = (ctypes.c_int64 * n)()
    if less is not None:
        _check_alike(less, out[0])
    subtracted = _address(less) if less is not None else None
    if dtype == "float32":
        LIBRARY.widen_float32(_address(out), subtracted, wrong, n, numel)
    else:
        function = LIBRARY.widen_bfloat16 if dtype == "bfloat16" else LIBRARY.widen_float16
        function(_address(stored), subtracted, _address(out), wrong, n, numel)
    return list(wrong)


def narrow(numbers: Array, dtype: str, out: NDArray[np.uint16]) -> int:
    """Round a row to ``bfloat16`` or ``float16``, as bit patterns, and return how many are not finite then."""
    assert LIBRARY is not None
    _check_alike(numbers, out)
    function = LIBRARY.narrow_bfloat16 if dtype == "bfloat16" else LIBRARY.narrow_float16
    wrong: int = function(_address(numbers), _address(out), len(out))
    return wrong


def trim(row: Array, bound: float, factor: float, out: Array) -> None:
    """Zero what is no larger in magnitude than ``bound``, and multiply the rest."""
    assert LIBRARY is not None
    _check_alike(row, out)
    LIBRARY.trim(_address(row), bound, factor, _address(out), row.shape[0])


def look(row: Array, low: float, high: float) -> tuple[int, NDArray[np.int32]]:
    """Return how many magnitudes lie from ``high`` on, and the bit patterns of those in [low, high) less ``low``'s."""
    assert LIBRARY is not None
    inside, above = np.empty(row.shape[0], dtype=np.int32), ctypes.c_int64()
    found = LIBRARY.look(_address(row), low, high, inside.ctypes.data, ctypes.byref(above), len(inside))
    return above.value, inside[:found]


def disjoint_merge(
    weighted: Array, weights: Sequence[float], *, by_count: bool, plus: bool, least_divisor: float | None
) -> Array:
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
    out = empty(weighted, numel)
    LIBRARY.disjoint_merge(
        _address(weighted),
        (ctypes.c_float * n)(*weights),
        n,
        by_count,
        plus,
        least_divisor is not None,
        least_divisor or 0.0,
        _address(out),
        numel,
    )
    return out


def weighted_sum(rows: Sequence[Array], factors: Sequence[float]) -> Array:
    """Sum rows times their factors, in their order."""
    assert LIBRARY is not None
    _check_alike(*rows)
    n, out = len(rows), empty(rows[0], rows[0].shape[0])
    addresses = (ctypes.c_void_p * n)(*[_address(row) for row in rows])
    LIBRARY.weighted_sum(addresses, (ctypes.c_float * n)(*factors), n, _address(out), out.shape[0])
    return out


def drop(row: Array | None, key: Sequence[int], start: int, limit: int, rest: int, out: Array) -> None:
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
    _check_alike(out if row is None else row, out)
    address = _address(row) if row is not None else None
    LIBRARY.drop(address, (ctypes.c_uint32 * len(key))(*key), start, limit, rest, _address(out), out.shape[0])


def gram(first: Array, second: Array, grain: int) -> NDArray[np.float64]:
    """Sum squares and products of two rows over runs of ``grain`` elements, in float64: shape ``(runs, 3)``."""
    assert LIBRARY is not None
    _check_alike(first, second)
    numel = first.shape[0]
    sums = np.empty((-(-numel // grain), 3))
    LIBRARY.gram(_address(first), _address(second), grain, sums.ctypes.data, numel)
    return sums


def page_sums(pages: NDArray[np.uint32], keys: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Sum the words of each page, each times the key of its place, modulo 2^64.

    Args:
        pages: Shape ``(pages, words)``, contiguous.
        keys: Shape ``(words,)``.
    """
    assert LIBRARY is not None
    _check_alike(pages[0], keys)
    sums = np.empty(len(pages), dtype=np.uint64)
    LIBRARY.page_sums(pages.ctypes.data, keys.ctypes.data, len(keys), sums.ctypes.data, len(pages))
    return sums
