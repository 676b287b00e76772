"""Spherical interpolation between two models; Shoemake 1985."""

from __future__ import annotations

import math

from pydantic import Field

from merge_cli.kernels import Array, chunk_gram, slerp_coefficients, weighted_sum
from merge_cli.methods.contract import Block, Input, MeasureOver, Method, Params, Totals, measure_sums


class SlerpParams(Params):
    """Parameters of slerp."""

    t: float = Field(examples=[0.5, 0.25], description="where between the two: 0 is the base, 1 the other model")


def slerp(block: Block, params: SlerpParams) -> Array:
    """Return the point at ``t`` on the arc between base and model, each tensor taken as one vector."""
    first, second = block.measured
    return weighted_sum([block.base, block.models[0]], [first, second])


def _gram(block: Block, _: SlerpParams) -> Array:
    return chunk_gram(block.base, block.models[0], block.grain)


def _coefficients(_: Totals, params: SlerpParams, sums: list[float]) -> tuple[float, float]:
    """Turn the Gram matrix of the two vectors into what each is multiplied with."""
    square_first, square_second, dot = sums
    return slerp_coefficients(math.sqrt(square_first), math.sqrt(square_second), dot, params.t)


def _caution(params: SlerpParams) -> str:
    """Say so where the point lies beyond the two models."""
    return "" if 0 <= params.t <= 1 else f"t = {params.t:.3g} lies beyond the two models; between them it is 0 to 1"


METHOD = Method(
    merge=slerp,
    params=SlerpParams,
    needs=lambda params, available: frozenset({Input.BASE, Input.MODELS}),
    summary="interpolate between two models along the arc",
    equation="merged = sin((1−t)Ω)/sin Ω · θ₀ + sin(tΩ)/sin Ω · θ₁,  cos Ω = ⟨θ₀, θ₁⟩ / (‖θ₀‖ ‖θ₁‖)",
    source="Shoemake 1985, doi 10.1145/325334.325242",
    differs="the angle is measured in float64 whatever the checkpoints hold; where one of the two tensors is zero the "
    "other is taken by its share of the straight line, in mergekit by sin(t π/2)",
    models=(1, 1),
    caution=_caution,
    measure=lambda params: measure_sums(
        frozenset({Input.BASE, Input.MODELS}), MeasureOver.TENSOR, _gram, _coefficients
    ),
    numpy=True,
    version=2,
)
