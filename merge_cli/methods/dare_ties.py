"""DARE, then sign election and disjoint merge; Yu et al. 2023, arXiv 2311.03099, with Yadav et al. 2023."""

from __future__ import annotations

import math

from merge_cli.kernels import Array, Election, ZeroSum, disjoint_merge
from merge_cli.methods.contract import Block, Input, Method, scaled_weights, setting
from merge_cli.methods.dare_linear import DareLinearParams, caution, measure_rescale
from merge_cli.methods.prepare.dare import drop_at_random, rescaling


class DareTiesParams(DareLinearParams):
    """Parameters of dare_ties."""

    elect: Election = setting("mass", description="sign of the summed entries, or of the number of them per side")
    zero_sum: ZeroSum = setting(
        "plus", description="what a sum of exactly zero elects: + (mergekit's), or nobody (the paper's)"
    )


def dare_ties(block: Block, params: DareTiesParams) -> Array:
    """Return θ₀ + λ times the disjoint merge of the randomly dropped, rescaled, weighted task vectors."""
    factors = rescaling(block, params.density, params.rescale)
    scaled = [weight * factor for weight, factor in zip(params.weight, factors, strict=True)]
    weighted = drop_at_random(block, params.density)
    weighted *= block.column(scaled)
    merged = disjoint_merge(
        weighted, params.weight, by=params.elect, zero_sum=params.zero_sum, normalize=params.normalize
    )
    merged *= params.scale
    merged += block.base
    return merged


def _rounds_before_deciding(params: DareTiesParams) -> bool:
    """Tell whether an entry divided by its density, or by an L1 norm, is rounded before it votes."""
    return params.rescale == "l1" or (
        params.rescale is True and any(math.frexp(density)[0] not in (0, 0.5) for density in params.density)
    )


METHOD = Method(
    merge=dare_ties,
    params=DareTiesParams,
    needs=lambda params, available: frozenset({Input.BASE, Input.DELTAS}),
    summary="drop entries at random, rescale, elect a sign per element, sum those that agree",
    equation="merged = θ₀ + λ Σ { wᵢ δ̂ᵢ : sign(wᵢ δ̂ᵢ) = sign(Σ wⱼ δ̂ⱼ) },  δ̂ᵢ = mᵢ (θᵢ − θ₀) / density",
    source="Yu et al. 2023, arXiv 2311.03099; Yadav et al. 2023, arXiv 2306.01708",
    differs="the paper trims by magnitude after dropping (prepare: dare with merge_method: ties); mergekit and this "
    "method let the random drop take the place of trimming and sum instead of averaging; for rescale and masks see "
    "dare_linear. Dropping biases the election: lower lambda towards 1 / (1 + p + … + pⁿ⁻¹)",
    measure=measure_rescale,
    effective_weights=lambda params: scaled_weights(params.weight, scale=params.scale, normalize=params.normalize),
    caution=caution,
    rounds_before_deciding=_rounds_before_deciding,
    numpy=True,
    version=2,
)
