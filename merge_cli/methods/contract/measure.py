"""Measures: folds over a whole tensor or model that run before the first block is merged."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from merge_cli.kernels import Array, fsum_rows
from merge_cli.methods.contract.block import Block, Input


class MeasureOver(StrEnum):
    """Range of a measure: one tensor, or the model."""

    TENSOR = "tensor"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Totals:
    """Size of what a measure runs over: ``n`` models of ``numel`` elements each."""

    n: int
    numel: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a measure: what ``block.measured`` will be."""

    value: Any


def _everything(_: Any) -> int:
    return 0


@dataclass(frozen=True)
class Measure:
    """A fold over blocks, in as many rounds as it takes; every round sees every block once, or a sample.

    ``combine`` must be exactly associative and commutative (integers, exact sums, collections whose order does not
    matter), so that neither the cut into blocks nor workers change the result. It may reuse its first argument.

    Attributes:
        needs: What ``fold`` reads of a block, where the method needs it too.
        over: One tensor, or all tensors together.
        start: ``(totals, params) -> state`` of the first round, or :class:`Measured` where no round is needed.
        fold: ``(state, part, block, params) -> part``: adds what one block contributes; ``part`` is None at first, and
            may be reused.
        combine: ``(part, part) -> part``.
        finish: ``(state, part) -> state`` of the next round, or :class:`Measured`.
        sample: ``state -> elements of each model that this round is content with``, 0 for all of them. A sample may
            decide how a result is found, never what it is.
        constants: Parameters that must be the same for every tensor when it runs over the model.
        depends: Parameters that its value depends on, None for all: merges that differ in others share it.
    """

    needs: frozenset[Input]
    over: MeasureOver
    start: Callable[[Totals, Any], Any]
    fold: Callable[[Any, Any, Block, Any], Any]
    combine: Callable[[Any, Any], Any]
    finish: Callable[[Any, Any], Any]
    sample: Callable[[Any], int] = _everything
    constants: tuple[str, ...] = ()
    depends: tuple[str, ...] | None = None


# The sums of every grain so far, one array per row. Not tensors: thousands of small ones that stay would lie between
# the large temporaries of a block, which could then not take each other's place in memory.
_Sums = list["array[float]"]


def measure_sums(
    needs: frozenset[Input],
    over: MeasureOver,
    sums: Callable[[Block, Any], Array],
    value: Callable[[Totals, Any, list[float]], Any],
    *,
    depends: tuple[str, ...] | None = None,
) -> Measure:
    """Return a measure of one round that sums numbers over elements, exactly.

    Args:
        needs: What ``sums`` reads.
        over: One tensor, or all together.
        sums: ``(block, params) -> (k, grains)``: k sums over each grain of a block, as :func:`chunk_sums` gives them.
        value: ``(totals, params, sums) -> value``: what the measure gives, from the k sums.
        depends: Parameters that ``sums`` and ``value`` read, None for all.
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
        return Measured(value(*state, fsum_rows(found)))

    return Measure(needs, over, start, fold, combine, finish, depends=depends)
