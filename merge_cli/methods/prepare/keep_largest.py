"""Keeping the entries of largest magnitude, counted in each tensor or in the whole model.

The trim step of TIES-Merging, Yadav et al. 2023, arXiv 2306.01708; for ``scope: model`` exactly as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from merge_cli.kernels import Bracket, count_inside, first_bracket, keep_at_least, narrow
from merge_cli.methods.contract import Block, Density, Extent, Measure, Measured, Need, Params, Step, Totals

# Per model: the threshold once it is known, until then where it lies.
_Search = list[Bracket | float]


class KeepLargestParams(Params):
    """Parameters of keep_largest."""

    density: Density = Field(description="fraction of entries to keep")
    scope: Literal["tensor", "model"] = Field("tensor", description="what density counts in")


def keep_largest(block: Block, params: KeepLargestParams) -> Tensor:
    """Zero all but the entries of largest magnitude."""
    return keep_at_least(block.deltas, block.measured)


def measure_thresholds(over: Extent, density_of: Callable[[Any, int], Sequence[float]]) -> Measure:
    """Find each model's magnitude from which on entries are kept, exactly.

    Args:
        over: Whether density counts in the tensor or in the whole model.
        density_of: ``(params, n) -> one density per model``.

    Returns:
        A measure whose value is one threshold per model: 0.0 keeps everything, infinity nothing.
    """

    def start(totals: Totals, params: Any) -> _Search | Measured:
        return _finished([first_bracket(totals.numel, density) for density in density_of(params, totals.n)])

    def fold(search: _Search, block: Block, params: Any) -> list[Tensor | None]:
        return [
            count_inside(row, where) if isinstance(where, Bracket) else None
            for row, where in zip(block.deltas, search, strict=True)
        ]

    def combine(left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
        return [a if a is None or b is None else a.add_(b) for a, b in zip(left, right, strict=True)]

    def finish(search: _Search, counts: list[Tensor | None]) -> _Search | Measured:
        return _finished(
            [
                narrow(where, count) if isinstance(where, Bracket) and count is not None else where
                for where, count in zip(search, counts, strict=True)
            ]
        )

    return Measure(frozenset({Need.DELTAS}), over, start, fold, combine, finish, constants=("density",))


def _finished(search: _Search) -> _Search | Measured:
    return search if any(isinstance(where, Bracket) for where in search) else Measured(search)


def _measure(params: KeepLargestParams) -> Measure:
    return measure_thresholds(Extent(params.scope), lambda params, n: [params.density] * n)


STEP = Step(
    apply=keep_largest,
    params=KeepLargestParams,
    source="Yadav et al. 2023, arXiv 2306.01708",
    measure=_measure,
)
