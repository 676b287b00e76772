"""Measures that need nothing but sums over elements."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from merge_cli.kernels import Array, exact_sums
from merge_cli.methods.contract.block import Block, Need
from merge_cli.methods.contract.measure import Extent, Measure, Measured, Totals

# The sums of every grain so far, one array per row. Not tensors: thousands of small ones that stay would lie between
# the large temporaries of a block, which could then not take each other's place in memory.
_Sums = list["array[float]"]


def measure_sums(
    needs: frozenset[Need],
    over: Extent,
    sums: Callable[[Block, Any], Array],
    value: Callable[[Totals, Any, list[float]], Any],
) -> Measure:
    """Return a measure of one round that sums numbers over elements, exactly.

    Args:
        needs: What ``sums`` reads.
        over: One tensor, or all together.
        sums: ``(block, params) -> (k, grains)``: k sums over each grain of a block, as :func:`grain_sums` gives them.
        value: ``(totals, params, sums) -> value``: what the measure gives, from the k sums.
    """

    def start(totals: Totals, params: Any) -> tuple[Totals, Any]:
        return totals, params

    def fold(_: Any, so_far: _Sums | None, block: Block, params: Any) -> _Sums:
        found = sums(block, params).tolist()
        return combine(so_far or [array("d") for _ in found], found)

    def combine(left: _Sums, right: Sequence[Iterable[float]]) -> _Sums:
        for mine, more in zip(left, right, strict=True):
            mine.extend(more)
        return left

    def finish(state: tuple[Totals, Any], found: _Sums) -> Measured:
        return Measured(value(*state, exact_sums(found)))

    return Measure(needs, over, start, fold, combine, finish)
