"""Uncertainty-based gradient matching; Daheim et al. 2024, arXiv 2310.12808.

Equation 12 lets every model pull with the whole of the base's curvature beside its own, and relies on the curvatures in
the denominator to hold the sum back. Diagonals do that badly: along task vectors of small transformers the whole
curvature is 6 to 90 times what its diagonal says, so that T models go T times too far. The default, ``anchor: auto``,
therefore shares one anchor among the models: the merged model then lies between base and models in every element.
``anchor: base`` is the equation to the letter; ``python -m tests.experiments.gradient_matching`` compares them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from merge_cli.kernels import chunk_sums, weighted_sum
from merge_cli.methods.contract import (
    Block,
    CurvatureScale,
    Diagnosis,
    Input,
    Measure,
    MeasureOver,
    Method,
    Params,
    Totals,
    Weights,
    measure_sums,
    per_model,
    setting,
)
from merge_cli.methods.contract.prospects import FAR, held_back, in_words, less_far, root_of
from merge_cli.optional import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "merge_method: gradient_matching")

# Prior precision where the recipe gives none, relative to the mean of the base's curvature: results hardly change from
# 1e-8 to 0.1 and get worse from 1 on.
_RELATIVE_PRIOR = 0.01


class GradientMatchingParams(Params):
    """Parameters of gradient_matching."""

    weight: Weights = per_model(1.0, example=0.5, description="weight α of the task; negative to remove it")
    prior_precision: Annotated[float, Field(ge=0)] | Literal["auto"] = setting(
        "auto",
        examples=[0.5],
        description="prior precision δ, added to the base's curvature, on the scale of the summed loss; auto: 0.01 "
        "times the mean of H₀; without base_fisher the mean of all Hᵢ, so that H₀ is that constant",
    )
    curvature_floor: float = setting(
        0.01, ge=0, description="least curvature of an element, relative to the mean of the model's curvature"
    )
    examples: tuple[Annotated[float, Field(gt=0)] | None, ...] = per_model(
        None, constant=True, description="size N of the training set; default: what the Fisher file says"
    )
    base_examples: float | None = setting(
        None, gt=0, description="size N₀ of the data the base's Fisher stands for; default: what its file says"
    )
    curvature: Literal["sum", "mean"] = setting(
        "sum", description="H = N·F (the paper's), or H = F, which counts all data sets alike"
    )
    anchor: Literal["auto", "base", "none", "measured"] = setting(
        "auto",
        description="what held fine-tuning back: base, the base's curvature (the paper's); none, nothing, it "
        "converged; measured, what the stored gradients say of each element (gradient: beside each model); auto, the "
        "share of base that the gradients say, all of it without gradients, and all models together no more than one",
    )
    kappa: float = setting(
        0.1, gt=0, le=1, description="least precision that removal may leave, relative to the base's curvature"
    )
    box: bool = setting(
        False, description="keep each element's step between zero and the furthest task vector on its side"
    )


@dataclass(frozen=True)
class Scales:
    """Factors that are the same for all elements.

    Attributes:
        prior: Prior precision δ.
        floors: Least curvature of each model.
        anchors: How much of the base's curvature each model pulls with, k in [0, 1].
        gratio: -<g, τ> / <τ, H₀ τ> of each model; empty where no gradients are stored.
    """

    prior: float
    floors: tuple[float, ...]
    anchors: tuple[float, ...]
    gratio: tuple[float, ...] = ()


def gradient_matching(block: Block, params: GradientMatchingParams) -> Tensor:
    """Return θ₀ + sum_i α_i (k_i H₀ + H_i) / (H₀ + sum_j α_j H_j) · (θ_i - θ₀); k_i = 1 in equation 12."""
    scales = _with_merged(block.measured or _given_scales(params), block.posterior)
    prior = torch.full_like(block.base, scales.prior)
    if block.has(Input.BASE_CURVATURE):
        prior += block.base_curvature
    curvature = torch.maximum(block.curvature, block.column(scales.floors))
    precision = _guarded(block, prior, weighted_sum(curvature, params.weight).add_(prior), params)
    target = weighted_sum(_pull(block, prior, curvature, scales, params), params.weight).div_(precision)
    if bool((precision <= 0).any()):
        # The limit δ -> 0: without any curvature the anchored rule is task arithmetic, and the others do not move.
        limit = [weight * anchor for weight, anchor in zip(params.weight, scales.anchors, strict=True)]
        target = torch.where(precision > 0, target, weighted_sum(block.deltas, limit))
    step = _boxed(block.deltas * block.column(params.weight).sign(), target) if params.box else target
    block.emit("precision", precision)
    _account(block, prior, precision, target, step, params)
    return step + block.base


def _account(
    block: Block, prior: Tensor, precision: Tensor, target: Tensor, step: Tensor, params: GradientMatchingParams
) -> None:
    """Sum up what the diagnosis and the forecast of gradient mismatch need.

    The forecast of a merge m is ||H̄ (m - target)||², in the metric of 1 / H₀: to second order the gradient mismatch of
    equation 10. For task arithmetic it is ||sum_i α_i H_i (θ_TA - θ_i)||² where experts are anchored at the base.
    """
    block.add("step", precision * step.square())
    for i, delta in enumerate(block.deltas):
        block.add(f"delta_{i}", precision * delta.square())
    # In this order, because the square of a large precision overflows float32.
    metric = precision / torch.where(prior > 0, prior, precision.clamp(min=1e-30)) * precision
    block.add("mismatch_gradient_matching", metric * (step - target).square())
    mean = [1 / block.n] * block.n
    for scheme, weights in (("task_arithmetic", params.weight), ("linear", mean)):
        block.add(f"mismatch_{scheme}", metric * (weighted_sum(block.deltas, weights) - target).square())


def _given_scales(params: GradientMatchingParams) -> Scales:
    """Return the scales where nothing had to be measured."""
    n = len(params.weight)
    prior = 0.0 if params.prior_precision == "auto" else params.prior_precision
    shares = (1.0 if params.anchor in ("base", "auto") else 0.0,) * n
    return Scales(prior, (0.0,) * n, _one_anchor(shares, params) if params.anchor == "auto" else shares)


def _one_anchor(shares: tuple[float, ...], params: GradientMatchingParams) -> tuple[float, ...]:
    """Scale the shares down so that, with their weights, those of the models that are added come to no more than 1."""
    total = sum(weight * share for weight, share in zip(params.weight, shares, strict=True) if weight > 0)
    if total <= 1:
        return shares
    return tuple(share / total if weight > 0 else share for weight, share in zip(params.weight, shares, strict=True))


def _with_merged(scales: Scales, posterior: tuple[bool, ...]) -> Scales:
    """Anchor merged models fully, and without a floor: their precision holds all that was merged."""
    if not any(posterior):
        return scales
    anchors = (1.0 if merged else k for merged, k in zip(posterior, scales.anchors, strict=True))
    # What was removed from a merged model counts with the opposite sign.
    floors = (-math.inf if merged else floor for merged, floor in zip(posterior, scales.floors, strict=True))
    return replace(scales, anchors=tuple(anchors), floors=tuple(floors))


def _pull(block: Block, prior: Tensor, curvature: Tensor, scales: Scales, params: GradientMatchingParams) -> Tensor:
    """Return what each model pulls with, H_i τ_i - g_i, shape ``(n, numel)``; g_i = -k_i H₀ τ_i unless it is stored."""
    if params.anchor == "measured":
        return (curvature * block.deltas).sub_(block.gradients)
    return (block.column(scales.anchors) * prior).add_(curvature).mul_(block.deltas)


def _guarded(block: Block, prior: Tensor, precision: Tensor, params: GradientMatchingParams) -> Tensor:
    """Keep the precision positive when tasks are removed: H₀ should exceed what is removed, estimates may not."""
    if all(weight >= 0 for weight in params.weight):
        return precision
    least = params.kappa * prior
    clipped = precision <= least
    if bool(clipped.any()):
        block.count("clipped", clipped)
    return torch.maximum(precision, least)


def _boxed(directed: Tensor, step: Tensor) -> Tensor:
    """Clip a step to the box spanned by zero and the deltas, each taken in the direction of its weight."""
    return torch.clamp(step, directed.amin(dim=0).clamp_(max=0), directed.amax(dim=0).clamp_(min=0))


def _measure(params: GradientMatchingParams) -> Measure | None:
    """Measure the means of the curvatures over the model, and how far the gradients show an anchor."""
    if params.prior_precision != "auto" and params.curvature_floor == 0 and params.anchor != "auto":
        return None

    needs = {Input.CURVATURE, Input.BASE_CURVATURE}
    if params.anchor == "auto":
        needs |= {Input.GRADIENTS, Input.DELTAS}
    return measure_sums(frozenset(needs), MeasureOver.MODEL, _sums, _scales)


def _sums(block: Block, _: GradientMatchingParams) -> Tensor:
    base = block.base_curvature if block.has(Input.BASE_CURVATURE) else torch.zeros_like(block.curvature[0])
    rows = [base[None], block.curvature]
    if block.has(Input.GRADIENTS):
        squares = block.deltas.square()
        rows += [block.gradients * block.deltas, squares * base, squares]
    return chunk_sums(torch.cat(rows), block.grain)


def _scales(totals: Totals, params: GradientMatchingParams, sums: list[float]) -> Scales:
    """Turn sums over the model into scales."""
    n = totals.n
    base, own = sums[0] / totals.numel, [each / totals.numel for each in sums[1 : n + 1]]
    prior = params.prior_precision
    if prior == "auto":
        prior = _RELATIVE_PRIOR * base if base > 0 else sum(own) / n
    floors = tuple(params.curvature_floor * mean for mean in own)
    given = _given_scales(params)
    if params.anchor != "auto" or len(sums) == n + 1:
        return Scales(prior, floors, given.anchors)
    pulls, curved, squares = (sums[n * k + 1 : n * (k + 1) + 1] for k in (1, 2, 3))
    held = [flat + prior * square for flat, square in zip(curved, squares, strict=True)]
    gratio = tuple(-pull / below if below > 0 else 1.0 for pull, below in zip(pulls, held, strict=True))
    shares = tuple(min(max(each, 0.0), 1.0) for each in gratio)
    return Scales(prior, floors, _one_anchor(shares, params), gratio)


def _needs(params: GradientMatchingParams, available: frozenset[Input]) -> frozenset[Input]:
    if Input.BASE_CURVATURE not in available and params.prior_precision == 0:
        raise ValueError(
            "gradient_matching needs base_fisher or prior_precision above 0: without either it is Fisher averaging"
        )
    gradients = {Input.GRADIENTS} if params.anchor == "measured" else set()
    if params.anchor == "auto":
        gradients = set(available & {Input.GRADIENTS})
    return frozenset({Input.BASE, Input.DELTAS, Input.CURVATURE} | gradients) | (available & {Input.BASE_CURVATURE})


def _diagnose(sums: Mapping[str, float], measured: Scales | None, params: GradientMatchingParams) -> Diagnosis:
    """Say what predicts failure: how far the step goes beyond the task vectors, and whether the anchor is right."""
    scales = measured or _given_scales(params)
    n = len(params.weight)
    length = sum(sums.get(f"delta_{i}", 0.0) for i in range(n)) / n
    extrapolation = sums.get("step", 0.0) / length if length > 0 else 0.0
    forecast = root_of(sums, "mismatch_task_arithmetic")
    values: dict[str, Any] = {
        "extrapolation": extrapolation,
        "prior_precision": scales.prior,
        "mismatch_of_task_arithmetic": forecast,
    }
    warnings: list[str] = []
    models: tuple[str, ...] = ()
    if scales.gratio:
        values |= {"gratio": list(scales.gratio), "anchors": list(scales.anchors)}
        models = tuple(map(held_back, scales.gratio, scales.anchors))
    elif params.anchor == "auto":
        warnings.append(
            "no gradients are stored, so fine-tuning is taken as held back by the base's curvature; where it ran to "
            "convergence that is wrong: store them (merge-cli fisher --gradient), or use anchor: none"
        )
    if extrapolation > FAR:
        less = (*less_far(params.weight, anchor=params.anchor, box=params.box), "or use task_arithmetic")
        warnings.append(
            f"the merged model lies far beyond the task vectors (extrapolation {extrapolation:.1f}; above {FAR} it is "
            f"usually worse than the base): {', '.join(less)}"
        )
    return Diagnosis(values, tuple(warnings), tuple(in_words(sums, extrapolation, params.weight)), models)


def _caution(params: GradientMatchingParams) -> str:
    """Say what is unusual about the weights: the rule was found to be good at 1 for up to three models, else at 1/n."""
    n, total = len(params.weight), sum(map(abs, params.weight))
    if min(params.weight) < -1:
        return "a removal with a weight beyond -1 is untested ground: -1 takes a task out once"
    if n > 3 and total > n / 2:
        return f"weights near 1 suit up to 3 models, here are {n}: 1/{n} each is the safer start"
    return f"the weights count {total:.3g} in all; 1 for each model is usual" if total > 1.5 * n else ""


METHOD = Method(
    merge=gradient_matching,
    params=GradientMatchingParams,
    needs=_needs,
    summary="add or remove tasks so that the gradients of the merged model match those of joint training",
    equation="merged = θ₀ + Σ αᵢ (kᵢ H₀ + Hᵢ) / (H₀ + Σ αⱼ Hⱼ) · (θᵢ − θ₀),  Hᵢ = Nᵢ Fᵢ,  H₀ = N₀ F₀ + δ;  kᵢ = 1 in "
    "the paper (anchor: base)",
    source="Daheim et al. 2024, arXiv 2310.12808, equation 12",
    differs="the authors' code has one weight for all models, no floor and no guard, and takes every expert as "
    "anchored at the base (anchor: base, curvature_floor: 0, prior_precision: 1e-12); no other maintained tool has it",
    measure=_measure,
    effective_weights=lambda params: params.weight,
    curvature_scale=lambda params: CurvatureScale(params.curvature == "mean", params.examples, params.base_examples),
    caution=_caution,
    diagnose=_diagnose,
    counts={
        "clipped": "kept the least precision that `kappa` allows: the removed curvature is larger there than the base's"
    },
    emits=("precision",),
    version=2,
)
