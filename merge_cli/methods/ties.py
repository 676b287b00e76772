"""TIES-Merging: trim, elect sign, disjoint merge; Yadav et al. 2023, arXiv 2306.01708."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merge_cli.kernels import Array, Election, ZeroSum, disjoint_merge, zero_below
from merge_cli.methods.contract import (
    Block,
    Density,
    Input,
    Measure,
    MeasureOver,
    Method,
    Params,
    Scale,
    Weights,
    per_model,
    scaled_weights,
    setting,
    unusual_task_weights,
)
from merge_cli.methods.prepare.keep_largest import measure_thresholds


class TiesParams(Params):
    """Parameters of ties."""

    weight: Weights = per_model(description="weight of the task vector, multiplied in before election")
    density: tuple[Density, ...] = per_model(
        1.0, example=0.5, description="fraction of entries to keep, largest magnitudes first"
    )
    scale: Scale = 1.0
    normalize: bool = Field(True, description="divide by the weights of the models that agree (the disjoint mean)")
    trim: Literal["tensor", "model"] = setting(
        "tensor", description="what density counts in: each tensor (mergekit's), or the whole model (the paper's)"
    )
    elect: Election = setting("mass", description="sign of the summed entries, or of the number of them per side")
    zero_sum: ZeroSum = setting(
        "plus", description="what a sum of exactly zero elects: + (mergekit's), or nobody (the paper's)"
    )


def ties(block: Block, params: TiesParams) -> Array:
    """Return θ₀ + λ times the disjoint merge of the trimmed, weighted task vectors."""
    weighted = zero_below(block.deltas, block.measured, params.weight)
    merged = disjoint_merge(
        weighted, params.weight, by=params.elect, zero_sum=params.zero_sum, normalize=params.normalize
    )
    merged *= params.scale
    merged += block.base
    return merged


def _measure(params: TiesParams) -> Measure:
    return measure_thresholds(MeasureOver(params.trim), lambda params, n: params.density)


METHOD = Method(
    merge=ties,
    params=TiesParams,
    needs=lambda params, available: frozenset({Input.BASE, Input.DELTAS}),
    summary="trim task vectors, elect a sign per element, average those that agree",
    equation="merged = θ₀ + λ · mean of { wᵢ τ̂ᵢ : sign(wᵢ τ̂ᵢ) = sign(Σ wⱼ τ̂ⱼ) },  τ̂ᵢ = largest entries of θᵢ − θ₀",
    source="Yadav et al. 2023, arXiv 2306.01708",
    differs="the paper trims over the whole model (trim: model), has no weights, and lets a zero sum elect nobody "
    "(zero_sum: none); mergekit breaks ties in magnitude by the order of a sort, here every entry at the threshold is "
    "kept; of each tensor at least one entry is kept, whatever the density but zero",
    measure=_measure,
    effective_weights=lambda params: scaled_weights(params.weight, scale=params.scale, normalize=params.normalize),
    caution=lambda params: unusual_task_weights(
        params.weight, scale=params.scale, normalize=params.normalize, density=params.density
    ),
    numpy=True,
    version=2,
)
