"""Averaging and weighted averaging of models.

Isotropic averaging is the case of equal weights; Wortsman et al. 2022, "Model soups", arXiv 2203.05482.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from merge_cli.kernels import Array, weighted_sum
from merge_cli.methods.contract import Block, Input, Method, Params, Weights, per_model, scaled_weights, unusual_average


class LinearParams(Params):
    """Parameters of linear."""

    weight: Weights = per_model(description="weight of the model")
    normalize: bool = Field(True, description="divide by the sum of the weights")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.normalize and abs(sum(self.weight)) < 1e-12:
            raise ValueError("the weights sum to zero, by which normalize cannot divide; use normalize: false")
        return self


def linear(block: Block, params: LinearParams) -> Array:
    """Return sum_i w_i θ_i, divided by sum_i w_i with ``normalize``."""
    divisor = sum(params.weight) if params.normalize else 1.0
    return weighted_sum(block.models, [weight / divisor for weight in params.weight])


METHOD = Method(
    merge=linear,
    params=LinearParams,
    needs=lambda params, available: frozenset({Input.MODELS}),
    summary="average, weighted or not",
    equation="merged = Σ wᵢ θᵢ / Σ wᵢ",
    source="Wortsman et al. 2022, arXiv 2203.05482",
    differs="mergekit rounds weights and products to dtype before summing and divides by zero weights without a word; "
    "a base_model that is not among the models takes no part here, and crashes there",
    effective_weights=lambda params: scaled_weights(params.weight, normalize=params.normalize),
    caution=lambda params: unusual_average(params.weight, normalize=params.normalize),
    numpy=True,
    version=2,
)
