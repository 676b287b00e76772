"""Sums over models and sums over elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from merge_cli.kernels import compiled
from merge_cli.kernels.arrays import Array, is_numpy

GRAIN = 16384
"""Elements that are summed as one; blocks start at multiples of it."""


def sum_models(rows: Array) -> Array:
    """Return ``sum_i rows[i]``, added in the order of the rows.

    ``rows.sum(dim=0)`` would add the last few columns of a block in an order that depends on the block's shape.

    Args:
        rows: Shape ``(n, numel)``, n at least 1.

    Returns:
        A new tensor of shape ``(numel,)``.
    """
    if len(rows) == 1:
        return rows[0].clone()
    total = rows[0] + rows[1]
    for row in rows[2:]:
        total.add_(row)
    return total


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
    if compiled.can_take(*rows):
        return compiled.weighted_sum(rows, weights)
    # No add_ with alpha: it rounds once on processors that can, and not elsewhere.
    total = rows[0] * weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total += row * weight
    return total


def divisor_of(weights: Sequence[float]) -> float:
    """Return the sum of the weights, to divide by; 1 where they cancel, so that nothing is divided."""
    total = sum(weights)
    return total if abs(total) >= 1e-8 else 1.0


def grain_sums(rows: Array) -> Array:
    """Sum each row over runs of :data:`GRAIN` elements, the last run as long as it is.

    Args:
        rows: Shape ``(n, numel)``; starts at a multiple of GRAIN within its tensor.

    Returns:
        Float64 on the CPU, shape ``(n, ceil(numel / GRAIN))``.
    """
    whole = rows.shape[1] // GRAIN * GRAIN
    if is_numpy(rows):
        sums = [rows[:, :whole].reshape(len(rows), -1, GRAIN).sum(axis=2, dtype=np.float64)]
        if whole < rows.shape[1]:
            sums.append(rows[:, whole:].sum(axis=1, keepdims=True, dtype=np.float64))
        return np.concatenate(sums, axis=1)  # type: ignore[return-value]
    import torch

    parts = [rows[:, :whole].reshape(len(rows), -1, GRAIN).sum(dim=2, dtype=torch.float64)]
    if whole < rows.shape[1]:
        parts.append(rows[:, whole:].sum(dim=1, keepdim=True, dtype=torch.float64))
    return torch.cat(parts, dim=1).cpu()


def grain_gram(first: Array, second: Array) -> Array:
    """Sum squares and products of two vectors over runs of :data:`GRAIN` elements, in float64.

    Args:
        first: Shape ``(numel,)``; starts at a multiple of GRAIN within its tensor.
        second: The same shape.

    Returns:
        Float64 on the CPU, shape ``(3, ceil(numel / GRAIN))``: squares of the first, of the second, and products.
    """
    if compiled.can_take(first, second):
        return compiled.gram(first, second, GRAIN).T  # type: ignore[return-value]
    import torch

    one, other = first.double(), second.double()
    if one.device.type != "cpu":
        return grain_sums(torch.stack([one * one, other * other, one * other]))
    # Inner products need no temporaries, which takes half the time.
    runs = zip(torch.split(one, GRAIN), torch.split(other, GRAIN), strict=True)
    found = [[p.dot(p).item(), q.dot(q).item(), p.dot(q).item()] for p, q in runs]
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 3).T


def exact_sums(rows: Iterable[Iterable[float]]) -> list[float]:
    """Add up each row of what :func:`grain_sums` gave for all blocks, without rounding on the way.

    The correctly rounded sum does not depend on the order of a row's numbers, hence neither on threads.
    """
    return [math.fsum(row) for row in rows]
