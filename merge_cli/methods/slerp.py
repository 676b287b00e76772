"""Spherical interpolation between two models; Shoemake 1985."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from merge_cli.kernels import exact_sums, grain_sums, slerp_coefficients
from merge_cli.methods.contract import Block, Extent, Measure, Measured, Method, Need, Params, Totals


class SlerpParams(Params):
    """Parameters of slerp."""

    t: float = Field(description="where between the two: 0 is the base, 1 the other model")


def slerp(block: Block, params: SlerpParams) -> Tensor:
    """Return the point at ``t`` on the arc between base and model, each tensor taken as one vector."""
    first, second = block.measured
    merged: Tensor = block.base * first
    return merged.add_(block.models[0], alpha=second)


def _measure(_: SlerpParams) -> Measure:
    """Measure the Gram matrix of the two vectors, then what each is multiplied with."""

    def start(totals: Totals, params: SlerpParams) -> SlerpParams:
        return params

    def fold(_: SlerpParams, sums: list[Tensor] | None, block: Block, params: SlerpParams) -> list[Tensor]:
        first, second = block.base.double(), block.models[0].double()
        return [*(sums or ()), grain_sums(torch.stack([first * first, second * second, first * second]))]

    def combine(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        left.extend(right)
        return left

    def finish(params: Any, parts: list[Tensor]) -> Measured:
        square_first, square_second, dot = exact_sums(parts)
        return Measured(slerp_coefficients(math.sqrt(square_first), math.sqrt(square_second), dot, params.t))

    return Measure(frozenset({Need.BASE, Need.MODELS}), Extent.TENSOR, start, fold, combine, finish)


METHOD = Method(
    merge=slerp,
    params=SlerpParams,
    needs=lambda params, given: frozenset({Need.BASE, Need.MODELS}),
    summary="interpolate between two models along the arc",
    equation="merged = sin((1−t)Ω)/sin Ω · θ₀ + sin(tΩ)/sin Ω · θ₁,  cos Ω = ⟨θ₀, θ₁⟩ / (‖θ₀‖ ‖θ₁‖)",
    source="Shoemake 1985, doi 10.1145/325334.325242",
    differs="the angle is measured in float64 whatever the checkpoints hold; where one of the two tensors is zero the "
    "other is taken by its share of the straight line, in mergekit by sin(t π/2)",
    models=(1, 1),
    measure=_measure,
)
