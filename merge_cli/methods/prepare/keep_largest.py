"""Trimming: the entries of largest magnitude are kept, counted in each tensor or in the whole model.

The trim step of TIES-Merging, Yadav et al. 2023, arXiv 2306.01708; for ``scope: model`` exactly as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field

from merge_cli.kernels import Array, kth_magnitude, zero_below
from merge_cli.kernels.kth_magnitude import Found, Search, count_kept, last_rank, sample_size
from merge_cli.methods.contract import Block, Density, Input, Measure, Measured, MeasureOver, Params, Step, Totals

# Per rank: the magnitude once it is known, until then how it is looked for, and what that has found.
_Search = list[Search | float]
_Found = list[Found | None]
# Magnitudes of all ranks together that are held at once, 16 MiB; longer vectors are bracketed by a sample.
_MOST_COLLECTED = 2**22


class KeepLargestParams(Params):
    """Parameters of keep_largest."""

    density: Density = Field(description="fraction of entries to keep; at least one of them, unless it is 0")
    scope: Literal["tensor", "model"] = Field("tensor", description="what density counts in")


def keep_largest(block: Block, params: KeepLargestParams) -> Array:
    """Zero all but the entries of largest magnitude."""
    return zero_below(block.deltas, block.measured)


def measure_thresholds(over: MeasureOver, density_of: Callable[[Any, int], Sequence[float]]) -> Measure:
    """Find each model's magnitude from which on entries are kept, exactly.

    Args:
        over: Whether density counts in the tensor or in the whole model.
        density_of: ``(params, n) -> one density per model``, from the parameter ``density`` alone.

    Returns:
        A measure whose value is one threshold per model: 0.0 keeps everything, infinity nothing.
    """

    def ranks_of(totals: Totals, params: Any) -> list[int]:
        return [last_rank(totals.numel, count_kept(totals.numel, density)) for density in density_of(params, totals.n)]

    return measure_ranks(over, ranks_of, depends=("density",))


def measure_ranks(
    over: MeasureOver, ranks_of: Callable[[Totals, Any], Sequence[int]], *, depends: tuple[str, ...]
) -> Measure:
    """Find the magnitudes of some ranks, exactly.

    Args:
        over: Whether ranks count in the tensor or in the whole model.
        ranks_of: ``(totals, params) -> ranks``: one for each model, then perhaps another one for each, and so on. Rank
            1 is the largest entry, 0 stands for infinity, and one beyond the last for 0.0.
        depends: Parameters that ``ranks_of`` reads.

    Returns:
        A measure whose value is the list of these magnitudes.
    """

    def start(totals: Totals, params: Any) -> _Search | Measured:
        ranks = ranks_of(totals, params)
        most = _MOST_COLLECTED // len(ranks)
        return _finished([kth_magnitude.start(rank, totals.numel, most_collected=most) for rank in ranks])

    def fold(search: _Search, found: _Found | None, block: Block, params: Any) -> _Found:
        deltas = [block.deltas[i % block.n] for i in range(len(search))]
        rows = zip(search, found or [None] * len(search), deltas, strict=True)
        return [
            None if isinstance(where, float) else kth_magnitude.update(where, so_far, row)
            for where, so_far, row in rows
        ]

    def combine(left: _Found, right: _Found) -> _Found:
        return [
            None if a is None or b is None else kth_magnitude.combine(a, b) for a, b in zip(left, right, strict=True)
        ]

    def finish(search: _Search, found: _Found) -> _Search | Measured:
        rows = zip(search, found, strict=True)
        return _finished(
            [
                where if isinstance(where, float) or so_far is None else kth_magnitude.refine(where, so_far)
                for where, so_far in rows
            ]
        )

    return Measure(
        frozenset({Input.DELTAS}), over, start, fold, combine, finish,
        sample=lambda search: min((sample_size(where) for where in search if not isinstance(where, float)), default=0),
        constants=depends,
        depends=depends,
    )  # fmt: skip


def _finished(search: _Search) -> _Search | Measured:
    return Measured(search) if all(isinstance(where, float) for where in search) else search


def _measure(params: KeepLargestParams) -> Measure:
    return measure_thresholds(MeasureOver(params.scope), lambda params, n: [params.density] * n)


STEP = Step(
    apply=keep_largest,
    params=KeepLargestParams,
    source="Yadav et al. 2023, arXiv 2306.01708",
    measure=_measure,
    numpy=True,
    version=2,
)
