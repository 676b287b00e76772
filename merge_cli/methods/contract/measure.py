"""What must be known about a whole tensor or model before the first block can be merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from merge_cli.methods.contract.block import Block, Need


class Extent(StrEnum):
    """What a measure runs over."""

    TENSOR = "tensor"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Totals:
    """How much a measure runs over: ``n`` models of ``numel`` elements each."""

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
    """

    needs: frozenset[Need]
    over: Extent
    start: Callable[[Totals, Any], Any]
    fold: Callable[[Any, Any, Block, Any], Any]
    combine: Callable[[Any, Any], Any]
    finish: Callable[[Any, Any], Any]
    sample: Callable[[Any], int] = _everything
    constants: tuple[str, ...] = ()
