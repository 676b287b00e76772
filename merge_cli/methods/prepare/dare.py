"""DARE: drop entries of task vectors at random and rescale the rest; Yu et al. 2023, arXiv 2311.03099."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from merge_cli.kernels import GRAIN, Array, chunk_sums, drop, empty, keep_mask
from merge_cli.methods.contract import Block, Input, Measure, MeasureOver, Params, Step, Totals, measure_sums

Rescale = bool | Literal["l1"]


class DareParams(Params):
    """Parameters of dare."""

    drop_rate: float = Field(ge=0, le=1, description="probability p with which an entry is dropped")
    rescale: Rescale = Field(
        True, description="true: divide survivors by 1 - p (the paper's); l1: keep the tensor's L1 norm; false: leave"
    )


def dare(block: Block, params: DareParams) -> Array:
    """Drop entries of the deltas with probability ``drop_rate`` and rescale the rest."""
    density = [1 - params.drop_rate] * block.n
    dropped = drop_at_random(block, density)
    dropped *= block.column(rescaling(block, density, params.rescale))
    return dropped


def drop_at_random(block: Block, density: Sequence[float]) -> Array:
    """Return the deltas with entries dropped at random and none rescaled, shape ``(n, numel)``.

    A small tensor keeps at least one entry, so that it moves: a single entry is never dropped, and of several that
    would all be dropped the largest stays. Of :data:`GRAIN` entries and more all are dropped once in 10 million times
    at a density of 0.001, and that is let be.

    Args:
        block: The block.
        density: Probability of keeping an entry, per model; 1 is no change at all, 0 leaves zeros.
    """
    dropped = empty(block.deltas, *block.deltas.shape)
    for model, (row, kept, out) in enumerate(zip(block.deltas, density, dropped, strict=True)):
        drop(row, block.masks.key(model), block.masks.start, _probability(block, kept), out)
        # A block of a small tensor is all of it.
        if 0 < kept < 1 and block.numel == block.masks.numel < GRAIN and not out.any():
            mask = keep_mask(block.masks.key(model), 0, kept, empty(row, block.numel))
            if not mask.any():
                magnitudes = abs(row).tolist()
                place = magnitudes.index(max(magnitudes))
                out[place] = row[place]
    return dropped


def _probability(block: Block, density: float) -> float:
    """Return the probability with which an entry of a block's tensor is kept."""
    return 1.0 if block.masks.numel == 1 and density > 0 else density


def rescaling(block: Block, density: Sequence[float], rescale: Rescale) -> list[float]:
    """Return what the entries that were kept are multiplied with, per model.

    Args:
        block: Its ``measured`` must come from :func:`measure_l1` where ``rescale`` is ``l1``.
        density: Probability of keeping an entry, per model.
        rescale: How they are scaled.
    """
    if rescale == "l1":
        return [before / after if after > 0 else 1.0 for before, after in block.measured]
    return [1 / _probability(block, kept) if rescale and kept > 0 else 1.0 for kept in density]


def measure_l1(density_of: Any) -> Measure:
    """Measure each model's L1 norm in a tensor before and after dropping.

    Args:
        density_of: ``(params, n) -> one density per model``.

    Returns:
        A measure whose value is a list of (before, after).
    """

    def sums(block: Block, params: Any) -> Array:
        magnitudes = empty(block.deltas, 2 * block.n, block.numel)
        magnitudes[: block.n] = abs(block.deltas)
        magnitudes[block.n :] = abs(drop_at_random(block, density_of(params, block.n)))
        return chunk_sums(magnitudes, block.grain)

    def value(totals: Totals, params: Any, norms: list[float]) -> list[tuple[float, float]]:
        return list(zip(norms[: totals.n], norms[totals.n :], strict=True))

    return measure_sums(frozenset({Input.DELTAS}), MeasureOver.TENSOR, sums, value)


def _measure(params: DareParams) -> Measure | None:
    return measure_l1(lambda params, n: [1 - params.drop_rate] * n) if params.rescale == "l1" else None


STEP = Step(
    apply=dare, params=DareParams, source="Yu et al. 2023, arXiv 2311.03099", measure=_measure, numpy=True, version=2
)
