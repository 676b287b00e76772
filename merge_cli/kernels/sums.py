"""Sums over models and sums over elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from merge_cli.kernels import backend
from merge_cli.kernels.backend import Array, backend_of

GRAIN = 16384
"""Elements that are summed as one; blocks start at multiples of it."""


def sum_models(rows: Array) -> Array:
    """Return ``sum_i rows[i]``, added in the order of the rows.

    ``rows.sum(dim=0)`` would add the last few columns of a block in an order that depends on the block's shape.

    Args:
        rows: Shape ``(n, numel)``, n at least 1.

    Returns:
        A new array of shape ``(numel,)``.
    """
    return backend_of(rows).sum_models(rows)


def weighted_sum(rows: Array | Sequence[Array], weights: Sequence[float]) -> Array:
    """Return ``sum_i weights[i] * rows[i]``, each product rounded before it is added.

    Args:
        rows: Shape ``(n, numel)``, or n of shape ``(numel,)``; n at least 1.
        weights: n numbers.

    Returns:
        A new array of shape ``(numel,)``.
    """
    rows = list(rows)
    if len(rows) != len(weights):
        raise ValueError(f"{len(rows)} rows and {len(weights)} weights")
    return backend_of(rows[0]).weighted_sum(rows, weights)


def weight_sum_or_one(weights: Sequence[float]) -> float:
    """Return the sum of the weights, to divide by; 1 where they cancel, so that nothing is divided."""
    total = sum(weights)
    return total if abs(total) >= 1e-8 else 1.0


def chunk_sums(rows: Array, length: int = GRAIN) -> Array:
    """Sum each row over chunks of ``length`` elements, the last chunk as long as it is.

    Args:
        rows: Shape ``(n, numel)``; starts at a multiple of ``length`` within its tensor.
        length: Of a chunk; in a block of whole rows or tensors its :attr:`Block.grain`.

    Returns:
        Float64 on the CPU, shape ``(n, ceil(numel / length))``.
    """
    return backend_of(rows).chunk_sums(rows, length)


def chunk_gram(first: Array, second: Array, length: int = GRAIN) -> Array:
    """Sum squares and products of two vectors over chunks of ``length`` elements, in float64.

    Args:
        first: Shape ``(numel,)``; starts at a multiple of ``length`` within its tensor.
        second: The same shape.
        length: Of a chunk, as for :func:`chunk_sums`.

    Returns:
        Float64 on the CPU, shape ``(3, ceil(numel / length))``: squares of the first, of the second, and products.
    """
    return backend_of(first).chunk_gram(first, second, length)


def fsum_rows(rows: Iterable[Iterable[float]]) -> list[float]:
    """Add up each row of what :func:`chunk_sums` gave for all blocks, without rounding on the way.

    The correctly rounded sum does not depend on the order of a row's numbers, hence neither on threads.
    """
    return [math.fsum(row) for row in rows]


def page_sums(pages: NDArray[np.uint32], keys: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Sum the words of each page, each times the key of its place, modulo 2^64.

    Args:
        pages: Shape ``(pages, words)``, contiguous.
        keys: Shape ``(words,)``.
    """
    return backend.CPU.page_sums(pages, keys)
