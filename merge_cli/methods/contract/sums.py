"""Measures that need nothing but sums over elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from merge_cli.kernels import exact_sums, grain_sums
from merge_cli.methods.contract.block import Block, Need
from merge_cli.methods.contract.measure import Extent, Measure, Measured, Totals

# Parts that are kept apart before they are put together; a whole model has many thousands.
_MOST_PARTS = 512


def measure_sums(
    needs: frozenset[Need],
    over: Extent,
    rows: Callable[[Block, Any], Tensor],
    value: Callable[[Totals, Any, list[float]], Any],
) -> Measure:
    """Return a measure of one round that sums rows of numbers over elements, exactly.

    Args:
        needs: What ``rows`` reads.
        over: One tensor, or all together.
        rows: ``(block, params) -> (k, numel)``: the k numbers of each element that are summed.
        value: ``(totals, params, sums) -> value``: what the measure gives, from the k sums.
    """

    def start(totals: Totals, params: Any) -> tuple[Totals, Any]:
        return totals, params

    def fold(_: Any, parts: list[Tensor] | None, block: Block, params: Any) -> list[Tensor]:
        return _joined(parts or [], [grain_sums(rows(block, params))])

    def finish(state: tuple[Totals, Any], parts: list[Tensor]) -> Measured:
        return Measured(value(*state, exact_sums(parts)))

    return Measure(needs, over, start, fold, _joined, finish)


def _joined(parts: list[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    parts.extend(more)
    return parts if len(parts) <= _MOST_PARTS else [torch.cat(parts, dim=1)]
