"""DARE: drop entries of task vectors at random and rescale the rest; Yu et al. 2023, arXiv 2311.03099."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from merge_cli.kernels import drop_and_rescale, grain_sums
from merge_cli.methods.contract import Block, Extent, Measure, Need, Params, Step, Totals, measure_sums

Rescale = bool | Literal["l1"]


class DareParams(Params):
    """Parameters of dare."""

    drop_rate: float = Field(ge=0, le=1, description="probability p with which an entry is dropped")
    rescale: Rescale = Field(
        True, description="true: divide survivors by 1 - p (the paper's); l1: keep the tensor's L1 norm; false: leave"
    )


def dare(block: Block, params: DareParams) -> Tensor:
    """Drop entries of the deltas with probability ``drop_rate`` and rescale the rest."""
    return drop_at_random(block, [1 - params.drop_rate] * block.n, params.rescale)


def drop_at_random(block: Block, density: list[float], rescale: Rescale) -> Tensor:
    """Return the deltas with entries dropped at random, shape ``(n, numel)``.

    Args:
        block: Its ``measured`` must come from :func:`measure_l1` where ``rescale`` is ``l1``.
        density: Probability of keeping an entry, per model; 1 is no change at all, 0 leaves zeros.
        rescale: How survivors are scaled.
    """
    if rescale == "l1":
        factors = [before / after if after > 0 else 1.0 for before, after in block.measured]
    else:
        factors = [1 / kept if rescale and kept > 0 else 1.0 for kept in density]
    return drop_and_rescale(block.deltas, block.keep_mask(density), factors)


def measure_l1(density_of: Any) -> Measure:
    """Measure each model's L1 norm in a tensor before and after dropping.

    Args:
        density_of: ``(params, n) -> one density per model``.

    Returns:
        A measure whose value is a list of (before, after).
    """

    def sums(block: Block, params: Any) -> Tensor:
        magnitude = block.deltas.abs()
        return grain_sums(torch.vstack([magnitude, magnitude * block.keep_mask(density_of(params, block.n))]))

    def value(totals: Totals, params: Any, norms: list[float]) -> list[tuple[float, float]]:
        return list(zip(norms[: totals.n], norms[totals.n :], strict=True))

    return measure_sums(frozenset({Need.DELTAS}), Extent.TENSOR, sums, value)


def _measure(params: DareParams) -> Measure | None:
    return measure_l1(lambda params, n: [1 - params.drop_rate] * n) if params.rescale == "l1" else None


STEP = Step(apply=dare, params=DareParams, source="Yu et al. 2023, arXiv 2311.03099", measure=_measure)
