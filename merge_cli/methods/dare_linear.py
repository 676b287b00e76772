"""DARE, then task arithmetic; Yu et al. 2023, arXiv 2311.03099."""

from __future__ import annotations

from pydantic import Field

from merge_cli.kernels import Array, weight_sum_or_one, weighted_sum
from merge_cli.methods.contract import (
    Block,
    Density,
    Input,
    Measure,
    Method,
    Params,
    Scale,
    Weights,
    per_model,
    scaled_weights,
    setting,
    unusual_task_weights,
)
from merge_cli.methods.prepare.dare import Rescale, drop_at_random, measure_l1, rescaling


class DareLinearParams(Params):
    """Parameters of dare_linear."""

    weight: Weights = per_model(description="weight of the task vector")
    density: tuple[Density, ...] = per_model(
        1.0, example=0.5, description="probability of keeping an entry, 1 - p; a small tensor keeps at least one"
    )
    scale: Scale = 1.0
    normalize: bool = Field(False, description="divide by the sum of the weights")
    rescale: Rescale = setting(
        True, description="true: divide survivors by density (the paper's); l1: keep the tensor's L1 norm; false: leave"
    )


def dare_linear(block: Block, params: DareLinearParams) -> Array:
    """Return θ₀ + λ sum_i w_i times the randomly dropped, rescaled task vectors."""
    divisor = weight_sum_or_one(params.weight) if params.normalize else 1.0
    factors = rescaling(block, params.density, params.rescale)
    scaled = [params.scale * weight * factor / divisor for weight, factor in zip(params.weight, factors, strict=True)]
    merged = weighted_sum(drop_at_random(block, params.density), scaled)
    merged += block.base
    return merged


def measure_rescale(params: DareLinearParams) -> Measure | None:
    """Return the measure that ``rescale: l1`` needs."""
    return measure_l1(lambda params, n: params.density) if params.rescale == "l1" else None


def caution(params: DareLinearParams) -> str:
    """Say what is unusual about weights and density."""
    return unusual_task_weights(params.weight, scale=params.scale, normalize=params.normalize, density=params.density)


METHOD = Method(
    merge=dare_linear,
    params=DareLinearParams,
    needs=lambda params, available: frozenset({Input.BASE, Input.DELTAS}),
    summary="drop entries of task vectors at random, rescale the rest, add them to the base",
    equation="merged = θ₀ + λ Σ wᵢ mᵢ (θᵢ − θ₀) / density,  mᵢ ~ Bernoulli(density)",
    source="Yu et al. 2023, arXiv 2311.03099",
    differs="mergekit rescales so that each tensor's L1 norm stays (rescale: l1), which is the paper's only in "
    "expectation, and its masks depend on schedule and device; here they depend on seed, model, tensor and index",
    measure=measure_rescale,
    effective_weights=lambda params: scaled_weights(params.weight, scale=params.scale, normalize=params.normalize),
    caution=caution,
    numpy=True,
    version=3,
)
