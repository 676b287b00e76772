"""Every method as a formula on flat float64 vectors, written from its paper and apart from the tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Anchoring = Literal["auto", "shares", "base", "none", "measured"]


@dataclass(frozen=True)
class Site:
    """What merging needs to know; curvature and gradients on the scale of sums over the training sets.

    Attributes:
        base: θ_0.
        taus: Task vectors, one row for each expert.
        prior: H_0 without prior precision.
        curvature: H_t, one row for each expert.
        gradients: g_t at the experts, one row for each.
    """

    base: Tensor
    taus: Tensor
    prior: Tensor
    curvature: Tensor
    gradients: Tensor

    def scaled(self, prior: float, curvature: Tensor) -> Site:
        """Return the same with H_0 and each H_t multiplied by a number."""
        return replace(self, prior=self.prior * prior, curvature=self.curvature * curvature[:, None])

    @property
    def h0(self) -> Tensor:
        """H_0 with the default prior precision."""
        return self.prior + 0.01 * self.prior.mean()

    @property
    def gratio(self) -> list[float]:
        held = (self.taus.square() * self.h0).sum(dim=1)
        return (-(self.gradients * self.taus).sum(dim=1) / held).tolist()


def average(site: Site) -> Tensor:
    return site.base + site.taus.mean(dim=0)


def task_arithmetic(site: Site, weight: float) -> Tensor:
    return site.base + weight * site.taus.sum(dim=0)


def ties(site: Site, scale: float, density: float = 0.2) -> Tensor:
    """Trim over the whole model, elect by mass, mean of those that agree; a zero sum elects nobody."""
    keep = int(density * site.taus.shape[1])
    threshold = site.taus.abs().kthvalue(site.taus.shape[1] - keep + 1, dim=1, keepdim=True).values
    kept = torch.where(site.taus.abs() >= threshold, site.taus, torch.zeros(()).double())
    agree = kept * kept.sum(dim=0).sign() > 0
    return site.base + scale * (kept * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def dare(site: Site, weight: float, density: float = 0.5, seed: int = 7) -> Tensor:
    mask = torch.rand(site.taus.shape, generator=torch.Generator().manual_seed(seed)) < density
    return site.base + weight * (site.taus * mask / density).sum(dim=0)


def fisher_average(site: Site, floor: float = 1e-6) -> Tensor:
    """Fishers of norm 1, floored relative to their mean."""
    floored = torch.maximum(site.curvature, floor * site.curvature.mean(dim=1, keepdim=True))
    share = floored / site.curvature.norm(dim=1, keepdim=True)
    return site.base + (share * site.taus).sum(dim=0) / share.sum(dim=0)


@dataclass(frozen=True)
class Matched:
    """A merge by gradient matching and what it says of itself."""

    merged: Tensor
    extrapolation: float
    clipped: float = 0.0


def gradient_matching(
    site: Site,
    weight: float | Sequence[float] = 1.0,
    *,
    anchor: Anchoring = "auto",
    floor: float = 0.01,
    box: bool = False,
    kappa: float = 0.1,
) -> Matched:
    """Eq. 12, with the share of the anchor that the gradients show.

    With ``auto`` the shares times the weights sum up to no more than 1: each element is a mean of base and experts.
    """
    n = len(site.taus)
    alpha = torch.tensor([weight] * n if isinstance(weight, (int, float)) else list(weight)).double()[:, None]
    h0, h = site.h0, torch.maximum(site.curvature, floor * site.curvature.mean(dim=1, keepdim=True))
    if anchor == "measured":
        pull = h * site.taus - site.gradients
    else:
        shares = {"base": [1.0] * n, "none": [0.0] * n}.get(anchor) or [min(max(r, 0.0), 1.0) for r in site.gratio]
        k = torch.tensor(shares).double()[:, None]
        if anchor == "auto":
            k *= 1 / max(float((alpha * k).sum()), 1.0)
        pull = (k * h0 + h) * site.taus
    precision, clipped = h0 + (alpha * h).sum(dim=0), 0.0
    if float(alpha.min()) < 0:
        clipped = float((precision <= kappa * h0).double().mean())
        precision = torch.maximum(precision, kappa * h0)
    step = (alpha * pull).sum(dim=0) / precision
    if box:
        directed = site.taus * alpha.sign()
        step = step.clamp(directed.amin(dim=0).clamp(max=0), directed.amax(dim=0).clamp(min=0))
    length = (precision * site.taus.square()).sum(dim=1).mean()
    return Matched(site.base + step, float((precision * step.square()).sum() / length), clipped)
