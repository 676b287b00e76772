"""Uncertainty-based gradient matching; Daheim et al. 2024, arXiv 2310.12808."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from merge_cli.kernels import weighted_sum
from merge_cli.methods.contract import Block, Method, Need, Params, Weights, per_model, setting


class GradientMatchingParams(Params):
    """Parameters of gradient_matching."""

    weight: Weights = per_model(1.0, description="weight α of the task; negative to remove it")
    prior_precision: float = setting(
        0.0, ge=0, description="prior precision δ, added to the base's curvature; on the scale of the summed loss"
    )
    examples: tuple[float | None, ...] = per_model(
        None, constant=True, description="size N of the training set; default: what the Fisher file says"
    )
    base_examples: float | None = setting(
        None, gt=0, description="size N₀ of the data the base's Fisher stands for; default: what its file says"
    )
    curvature: Literal["sum", "mean"] = setting(
        "sum", description="H = N·F (the paper's), or H = F, which counts all data sets alike"
    )
    anchor: Literal["base", "none", "measured"] = setting(
        "base",
        description="where fine-tuning stopped: held by the base's curvature (the paper's), at its own optimum, or "
        "where the stored gradients say (gradient: beside each model)",
    )
    kappa: float = setting(
        0.1, gt=0, le=1, description="least precision that removal may leave, relative to the base's curvature"
    )


def gradient_matching(block: Block, params: GradientMatchingParams) -> Tensor:
    """Return θ₀ + sum_i α_i (H₀ + H_i) / (H₀ + sum_j α_j H_j) · (θ_i - θ₀)."""
    prior = torch.full_like(block.base, params.prior_precision)
    if block.has(Need.BASE_CURVATURE):
        prior = prior + block.base_curvature
    precision = _guarded(block, prior, prior + weighted_sum(block.curvature, params.weight), params)
    pull = weighted_sum(_pull(block, prior, params.anchor), params.weight)
    step = pull / precision
    if bool((precision <= 0).any()):
        # The limit δ -> 0: without any curvature the anchored rule is task arithmetic, and the others do not move.
        limit = weighted_sum(block.deltas, params.weight) if params.anchor == "base" else torch.zeros_like(step)
        step = torch.where(precision > 0, step, limit)
    return step.add_(block.base)


def _pull(block: Block, prior: Tensor, anchor: str) -> Tensor:
    """Return what each model pulls with, H_i τ_i - g_i, shape ``(n, numel)``; anchored at the base g_i = -H₀ τ_i."""
    if anchor == "base":
        return (prior + block.curvature) * block.deltas
    pull = block.curvature * block.deltas
    return pull - block.gradients if anchor == "measured" else pull


def _guarded(block: Block, prior: Tensor, precision: Tensor, params: GradientMatchingParams) -> Tensor:
    """Keep the precision positive when tasks are removed: H₀ should exceed what is removed, estimates may not."""
    if all(weight >= 0 for weight in params.weight):
        return precision
    least = params.kappa * prior
    clipped = precision <= least
    if bool(clipped.any()):
        block.count("clipped", clipped)
    return torch.maximum(precision, least)


def _needs(params: GradientMatchingParams, given: frozenset[Need]) -> frozenset[Need]:
    if Need.BASE_CURVATURE not in given and params.prior_precision == 0:
        raise ValueError(
            "gradient_matching needs base_fisher or prior_precision above 0: without either it is Fisher averaging"
        )
    gradients = {Need.GRADIENTS} if params.anchor == "measured" else set()
    return frozenset({Need.BASE, Need.DELTAS, Need.CURVATURE} | gradients) | (given & {Need.BASE_CURVATURE})


METHOD = Method(
    merge=gradient_matching,
    params=GradientMatchingParams,
    needs=_needs,
    summary="add or remove tasks so that the gradients of the merged model match those of joint training",
    equation="merged = θ₀ + Σ αᵢ (H₀ + Hᵢ) / (H₀ + Σ αⱼ Hⱼ) · (θᵢ − θ₀),  Hᵢ = Nᵢ Fᵢ,  H₀ = N₀ F₀ + δ",
    source="Daheim et al. 2024, arXiv 2310.12808, equation 12",
    differs="the authors' code has one weight for all models and no guard; no other maintained tool has the method",
)
