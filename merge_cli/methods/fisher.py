"""Fisher-weighted averaging; Matena & Raffel 2022, arXiv 2111.09832."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from merge_cli.kernels import chunk_sums, sum_models, weighted_sum
from merge_cli.methods.contract import (
    Block,
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
from merge_cli.optional import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "merge_method: fisher")


class FisherParams(Params):
    """Parameters of fisher."""

    weight: Weights = per_model(1.0, example=0.5, description="weight of the model; only ratios matter")
    normalize_fisher: bool = setting(
        True, description="divide each Fisher by its L2 norm over the model, so that no model outweighs by scale alone"
    )
    fisher_floor: float = setting(
        1e-6, ge=0, description="least Fisher of an element, relative to the mean of the model's Fisher"
    )
    favour: int | Literal["none"] = setting(
        0, description="position of the model returned where every Fisher is zero, 0 first; none: the weighted mean"
    )
    include_base: bool = setting(False, description="the base takes part too, with base_fisher and weight 1")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if min(self.weight) < 0 or not (any(self.weight) or self.include_base):
            raise ValueError("a precision cannot be negative: every weight must be at least 0, and one above 0")
        if self.favour != "none" and not 0 <= self.favour < len(self.weight):
            raise ValueError(f"favour: {self.favour} names none of the {len(self.weight)} models, counted from 0")
        return self


def fisher(block: Block, params: FisherParams) -> Tensor:
    """Return sum_i c_i φ_i θ_i / sum_i c_i φ_i, with φ the floored Fisher and c the weight over its norm."""
    raw, models, weights = block.fisher, block.models, list(params.weight)
    if params.include_base:
        raw, models = torch.vstack([raw, block.base_fisher]), torch.vstack([models, block.base])
        weights.append(1.0)
    importance = _importance(raw, weights, block.measured, params)
    total = sum_models(importance)
    merged = sum_models(importance * models) / total
    unseen = (sum_models(raw) <= 0) | (total <= 0)
    if not bool(unseen.any()):
        return merged
    block.count("no_fisher", unseen)
    return torch.where(unseen, _fallback(models, weights, params), merged)


def _importance(raw: Tensor, weights: list[float], measured: list[tuple[float, float]], params: FisherParams) -> Tensor:
    """Return c_i φ_i, shape ``(n, numel)``; a common factor, which cancels, keeps it near 1."""
    means = [mean for mean, _ in measured]
    norms = [norm or 1.0 for _, norm in measured] if params.normalize_fisher else [1.0] * len(means)
    common = max(mean / norm for mean, norm in zip(means, norms, strict=True)) or 1.0
    factor = torch.tensor(
        [weight / norm / common for weight, norm in zip(weights, norms, strict=True)], device=raw.device
    )
    floor = torch.tensor([params.fisher_floor * mean for mean in means], device=raw.device)
    return torch.maximum(raw, floor[:, None]).mul_(factor[:, None])


def _fallback(models: Tensor, weights: list[float], params: FisherParams) -> Tensor:
    if params.favour == "none":
        total = sum(weights)
        return weighted_sum(models, [weight / total for weight in weights])
    return models[params.favour]


def _measure(params: FisherParams) -> Measure:
    """Measure each Fisher's mean and L2 norm over the model."""
    needs = {Input.FISHER, Input.BASE_FISHER} if params.include_base else {Input.FISHER}
    return measure_sums(frozenset(needs), MeasureOver.MODEL, _sums, _means_and_norms, depends=("include_base",))


def _sums(block: Block, params: FisherParams) -> Tensor:
    raw = torch.vstack([block.fisher, block.base_fisher]) if params.include_base else block.fisher
    wide = raw.double()
    return chunk_sums(torch.vstack([wide, wide * wide]), block.grain)


def _means_and_norms(totals: Totals, _: FisherParams, sums: list[float]) -> list[tuple[float, float]]:
    half = len(sums) // 2
    return [(total / totals.numel, math.sqrt(square)) for total, square in zip(sums[:half], sums[half:], strict=True)]


def _needs(params: FisherParams, available: frozenset[Input]) -> frozenset[Input]:
    base = {Input.BASE, Input.BASE_FISHER} if params.include_base else set()
    return frozenset({Input.MODELS, Input.FISHER} | base)


METHOD = Method(
    merge=fisher,
    params=FisherParams,
    needs=_needs,
    summary="average weighted by each model's Fisher diagonal",
    equation="merged = Σ wᵢ Fᵢ θᵢ / Σ wᵢ Fᵢ",
    source="Matena & Raffel 2022, arXiv 2111.09832",
    differs="the authors' code floors the raw Fisher at 1e-6 for the first model only; here the floor is relative and "
    "for all. mergekit has no Fisher averaging",
    measure=_measure,
    counts={"no_fisher": "have a Fisher of zero in every model and are as `favour` says"},
    version=2,
)
