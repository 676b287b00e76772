"""One family and one seed of the experiment: trained, merged in every way, scored; the result is plain data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge_cli.demo.report import spearman
from tests.experiments import formulas
from tests.experiments.families import Anchor, Data, Family, Score, classifier, flat_of, joined, language_model, put
from tests.experiments.formulas import Anchoring, Site, gradient_matching

FAMILIES: Mapping[str, Callable[..., Family]] = {"classifier": classifier, "language model": language_model}
REGIMES = ("anchored", "early", "converged")
GRID = 20
_WEIGHTS = tuple(0.05 * (i + 1) for i in range(GRID))
_DOUBLE = tuple(0.1 * (i + 1) for i in range(GRID))
_FLOORS = tuple(10 ** (-6 + 7 * i / (GRID - 1)) for i in range(GRID))
# Smallest to largest weight of a removal, evenly in the logarithm.
_REMOVALS = tuple(0.02 * 100 ** (i / (GRID - 1)) for i in range(GRID))
# Examples for curvatures of the base, of experts, and for mismatches.
_FISHER_BASE, _FISHER, _MISMATCH, _ALONG = 512, 256, 300, 384
# What a removal may cost the control, relative to its loss.
_COST = 0.05

Merges = dict[str, Callable[[float], Tensor]]


def run_one(name: str, seed: int, *, quick: bool = False) -> dict[str, Any]:
    """Run one family with one seed."""
    torch.set_num_threads(1)
    family = FAMILIES[name](seed, quick=quick)
    base = family.train(family.new(seed), family.base_train, "base", seed=seed)
    prior = family.fisher(base, family.base_train, examples=_FISHER_BASE, seed=seed) * len(family.base_train)
    regimes = {regime: _Regime(family, base, prior, regime, seed).results() for regime in REGIMES}
    removal = {regime: _removal(family, base, prior, regime, seed) for regime in ("anchored", "early")}
    return {"family": name, "seed": seed, "regimes": regimes, "removal": removal}


class _Regime:
    """Experts fine-tuned in one way, and everything that is done with them."""

    def __init__(self, family: Family, base: Any, prior: Tensor, regime: str, seed: int) -> None:
        self._family, self._scratch, self._seed = family, copy.deepcopy(base), seed
        data = [family.domains[name].train for name in family.experts]
        anchor = _anchor(base, prior) if regime == "anchored" else None
        experts = [family.train(copy.deepcopy(base), each, regime, seed=seed, anchor=anchor) for each in data]
        self._joint = copy.deepcopy(base)
        family.train(self._joint, joined(data), regime, seed=seed, anchor=anchor)
        start = flat_of(base)
        curvature = [
            family.fisher(model, each, examples=_FISHER, seed=seed) * len(each) for model, each in _zip(experts, data)
        ]
        gradients = [family.gradient(model, each) for model, each in _zip(experts, data)]
        taus = torch.stack([flat_of(model) for model in experts]) - start
        self.site = Site(start, taus, prior, torch.stack(curvature), torch.stack(gradients))
        self._data = data
        # The mismatch is measured on the same examples at the experts and at the merged models.
        self._sampled = sum(
            (family.gradient(model, each, examples=_MISMATCH) for model, each in _zip(experts, data)),
            torch.zeros(()).double(),
        )
        self.factors = self._factors()
        # All data sets counted alike, as with `curvature: mean`.
        self._equal = self.site.scaled(len(data[0]) / len(family.base_train), torch.ones(len(data)).double())
        self.calibrated = self.site.scaled(float(self.factors[0]), self.factors[1:])

    def _factors(self) -> Tensor:
        """Whole curvature over diagonal curvature along the task vectors: mean of H_0's, then each H_t's."""
        family, site, scratch = self._family, self.site, self._scratch
        found = []
        for data, at, directions, diagonal in (
            (family.base_train, site.base, site.taus, site.prior),
            *(
                (each, site.base + tau, tau[None], own)
                for each, tau, own in zip(self._data, site.taus, site.curvature, strict=True)
            ),
        ):
            whole = family.curvature_along(scratch, at, directions, data, examples=_ALONG, seed=self._seed) * len(data)
            found.append((whole / (directions.square() * diagonal).sum(dim=1)).mean())
        return torch.stack(found)

    def results(self) -> dict[str, Any]:
        site = self.site
        untuned: dict[str, Tensor] = {
            "base": site.base,
            "average": formulas.average(site),
            "fisher average": formulas.fisher_average(site),
            "task arithmetic, 0.4": formulas.task_arithmetic(site, 0.4),
            "task arithmetic, 1": formulas.task_arithmetic(site, 1.0),
            "gm auto, 1": gradient_matching(site, 1.0).merged,
            "gm base, 1": gradient_matching(site, 1.0, anchor="base").merged,
            "gm none, 1": gradient_matching(site, 1.0, anchor="none").merged,
            "gm shares, 1": gradient_matching(site, 1.0, anchor="shares").merged,
            "gm shares, 1/T": gradient_matching(site, 1 / 3, anchor="shares").merged,
            "gm shares box, 1": gradient_matching(site, 1.0, anchor="shares", box=True).merged,
            "gm none mean, 1": gradient_matching(self._equal, 1.0, anchor="none").merged,
            "gm shares calibrated, 1": gradient_matching(self.calibrated, 1.0, anchor="shares").merged,
        }
        curves = {name: self._curve(merge, grid) for name, (merge, grid) in self._tunable().items()}
        tuned = {}
        for name, curve in curves.items():
            best = min(curve, key=lambda point: point[1])[0]
            tuned[f"{name}, tuned"] = self._tunable()[name][0](best)
        every = {name: self._row(flat) for name, flat in (untuned | tuned).items()}
        every["joint"] = self._row(flat_of(self._joint))
        merged = [row for name, row in every.items() if name not in ("base", "joint")]
        return {
            "models": every,
            "curves": curves,
            "gratio": site.gratio,
            "factors": self.factors.tolist(),
            "shift": (site.taus.norm(dim=1) / site.base.norm()).tolist(),
            "rank": {
                key: spearman([row[key] for row in merged], [row["loss"] for row in merged])
                for key in ("mismatch", "residual")
            },
            "diagnosed": self._diagnosed(every["base"]["loss"], every["average"]["loss"]),
        }

    def _tunable(self) -> dict[str, tuple[Callable[[float], Tensor], Sequence[float]]]:
        site = self.site
        return {
            "task arithmetic": (lambda x: formulas.task_arithmetic(site, x), _WEIGHTS),
            "TIES": (lambda x: formulas.ties(site, x), tuple(1.5 * x for x in _DOUBLE)),
            "DARE": (lambda x: formulas.dare(site, x), _WEIGHTS),
            "fisher average": (lambda x: formulas.fisher_average(site, x), _FLOORS),
            "gm auto": (lambda x: gradient_matching(site, x).merged, _DOUBLE),
            "gm shares": (lambda x: gradient_matching(site, x, anchor="shares").merged, _DOUBLE),
            "gm none": (lambda x: gradient_matching(site, x, anchor="none").merged, _DOUBLE),
            "gm shares calibrated": (lambda x: gradient_matching(self.calibrated, x, anchor="shares").merged, _DOUBLE),
        }

    def _curve(self, merge: Callable[[float], Tensor], grid: Sequence[float]) -> list[tuple[float, float]]:
        return [(value, self._mean(merge(value), "validation")) for value in grid]

    def _mean(self, flat: Tensor, part: str) -> float:
        scores = self._scores(flat, part, self._family.experts)
        return sum(score.loss for score in scores.values()) / len(scores)

    def _scores(self, flat: Tensor, part: str, names: Sequence[str]) -> dict[str, Score]:
        model = put(self._scratch, flat)
        return {name: self._family.score(model, getattr(self._family.domains[name], part)) for name in names}

    def _row(self, flat: Tensor) -> dict[str, float]:
        family = self._family
        scores = self._scores(flat, "test", list(family.domains))
        own = [scores[name] for name in family.experts]
        there = sum(
            (family.gradient(self._scratch, each, examples=_MISMATCH) for each in self._data), torch.zeros(()).double()
        )
        gap, held = there - self._sampled, there + self.site.h0 * (flat - self.site.base)
        return {
            "loss": sum(score.loss for score in own) / len(own),
            "accuracy": sum(score.accuracy for score in own) / len(own),
            "control": scores[family.control].loss,
            "mismatch": math.sqrt(float((gap.square() / self.site.h0).sum())),
            "residual": math.sqrt(float((held.square() / self.site.h0).sum())),
        }

    def _diagnosed(self, base: float, average: float) -> list[dict[str, Any]]:
        """Merges by gradient matching with different settings, what they say of themselves, and whether they failed."""
        found = []
        anchors: tuple[Anchoring, ...] = ("shares", "base", "none", "auto")
        for anchor in anchors:
            for weight in (1 / 3, 1.0, 2.0):
                matched = gradient_matching(self.site, weight, anchor=anchor)
                loss = self._mean(matched.merged, "test")
                found.append({
                    "anchor": anchor, "weight": weight, "extrapolation": matched.extrapolation, "loss": loss,
                    "gratio": min(self.site.gratio), "below base": loss > base, "below average": loss > 1.01 * average,
                })  # fmt: skip
        return found


def _anchor(base: Any, prior: Tensor) -> Anchor:
    return Anchor(base, prior + 0.01 * prior.mean())


def _zip(models: Sequence[Any], data: Sequence[Data]) -> list[tuple[Any, Data]]:
    return list(zip(models, data, strict=True))


def _removal(family: Family, base: Any, prior: Tensor, regime: str, seed: int) -> dict[str, Any]:
    """Remove what the base has seen of the first expert's domain, by an expert on just that."""
    data = family.removable
    anchor = _anchor(base, prior) if regime == "anchored" else None
    expert = family.train(copy.deepcopy(base), data, regime, seed=seed, anchor=anchor)
    start = flat_of(base)
    there = family.fisher(base, data, examples=_FISHER, seed=seed) * len(data)
    gradient = family.gradient(expert, data)
    site = Site(start, (flat_of(expert) - start)[None], prior, there[None], gradient[None])
    at_expert = Site(
        start,
        site.taus,
        prior,
        (family.fisher(expert, data, examples=_FISHER, seed=seed) * len(data))[None],
        gradient[None],
    )
    ways: Merges = {
        "negation": lambda x: formulas.task_arithmetic(site, -x),
        "gm": lambda x: gradient_matching(site, -x, anchor="base").merged,
        "gm, kappa 0.5": lambda x: gradient_matching(site, -x, anchor="base", kappa=0.5).merged,
        "gm, boxed": lambda x: gradient_matching(site, -x, anchor="base", box=True).merged,
        "gm, anchor none": lambda x: gradient_matching(site, -x, anchor="none").merged,
        "gm, curvature at the expert": lambda x: gradient_matching(at_expert, -x, anchor="base").merged,
    }
    target = family.experts[0]
    controls = [name for name in family.domains if name != target]
    scratch = copy.deepcopy(base)

    def score(flat: Tensor) -> tuple[float, float]:
        model = put(scratch, flat)
        found = {name: family.score(model, split.test).loss for name, split in family.domains.items()}
        return sum(found[name] for name in controls) / len(controls), found[target]

    before = score(start)
    curves = {name: [score(merge(weight)) for weight in _REMOVALS] for name, merge in ways.items()}
    clipped = gradient_matching(site, -1.0, anchor="base").clipped
    return {
        "before": before,
        "curves": curves,
        "at equal control": {name: _at(curve, before, _COST) for name, curve in curves.items()},
        "at weight 1": {name: score(ways[name](1.0)) for name in ("negation", "gm", "gm, boxed")},
        "clipped": clipped,
    }


def _at(curve: Sequence[tuple[float, float]], before: tuple[float, float], cost: float) -> float:
    """The target's loss where the control's has first risen by ``cost``, on a line between two weights."""
    limit = before[0] * (1 + cost)
    last = before
    for control, target in curve:
        if control >= limit:
            share = (limit - last[0]) / (control - last[0]) if control > last[0] else 0.0
            return last[1] + share * (target - last[1])
        last = (control, target)
    return last[1]
