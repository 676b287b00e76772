"""Task arithmetic: adding and subtracting task vectors; Ilharco et al. 2023, arXiv 2212.04089."""

from __future__ import annotations

from pydantic import Field

from merge_cli.kernels import Array, weight_sum_or_one, weighted_sum
from merge_cli.methods.contract import (
    Block,
    Input,
    Method,
    Params,
    Scale,
    Weights,
    per_model,
    scaled_weights,
    unusual_task_weights,
)


class TaskArithmeticParams(Params):
    """Parameters of task_arithmetic."""

    weight: Weights = per_model(description="weight of the task vector; negative to forget the task")
    scale: Scale = 1.0
    normalize: bool = Field(False, description="divide by the sum of the weights")


def task_arithmetic(block: Block, params: TaskArithmeticParams) -> Array:
    """Return θ₀ + λ sum_i w_i (θ_i - θ₀), the sum divided by sum_i w_i with ``normalize``."""
    divisor = weight_sum_or_one(params.weight) if params.normalize else 1.0
    scaled = [params.scale * weight / divisor for weight in params.weight]
    merged = weighted_sum(block.deltas, scaled)
    merged += block.base
    return merged


METHOD = Method(
    merge=task_arithmetic,
    params=TaskArithmeticParams,
    needs=lambda params, available: frozenset({Input.BASE, Input.DELTAS}),
    summary="add scaled task vectors to the base, or subtract them",
    equation="merged = θ₀ + λ Σ wᵢ (θᵢ − θ₀)",
    source="Ilharco et al. 2023, arXiv 2212.04089",
    differs="mergekit computes in dtype, so bfloat16 recipes lose bits there",
    effective_weights=lambda params: scaled_weights(params.weight, scale=params.scale, normalize=params.normalize),
    caution=lambda params: unusual_task_weights(params.weight, scale=params.scale, normalize=params.normalize),
    numpy=True,
    version=2,
)
