"""Diagnosis of gradient matching, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

# Extrapolation from which merges are usually worse than the base; tests/experiments counts them.
FAR = 1.5


def held_back(gratio: float, anchor: float) -> str:
    """Say what its gradient tells of a model: how its fine-tuning ended, and what is made of that."""
    if gratio < 0:
        how = "its loss falls on the way back to the base; is the gradient that of its own training data?"
    elif gratio < 0.3:
        how = "hardly held back by the base's curvature, it ran nearly to convergence"
    elif gratio < 0.7:
        how = "held back by the base's curvature in part"
    elif gratio <= 1.5:
        how = "held back by the base's curvature, as assumed"
    else:
        how = "stopped before the base's curvature held it back"
    return f"{how} (gratio {gratio:.2g}, pulls with {anchor:.2g} of the base's curvature)"


def in_words(sums: Mapping[str, float], extrapolation: float, weights: Sequence[float]) -> Iterator[str]:
    """Say how far the merge goes, and what is forecast for two others of the same models."""
    if 1 < extrapolation <= FAR:
        yield f"the merged model goes a little beyond its task vectors, as it may (extrapolation {extrapolation:.2g})"
    elif 0 < extrapolation <= 1:
        yield f"the merged model goes no further than its task vectors (extrapolation {extrapolation:.2g})"
    if len(weights) > 1 and min(weights) > 0:
        arithmetic, mean = (root_of(sums, f"mismatch_{name}") for name in ("task_arithmetic", "linear"))
        how = compared(arithmetic, mean)
        yield f"task arithmetic is expected to be {how} the average (gradient mismatch {arithmetic:.3g}, {mean:.3g})"


def root_of(sums: Mapping[str, float], name: str) -> float:
    """Return the root of a sum of squares; what a journal says of one may be no such sum."""
    return math.sqrt(max(0.0, sums.get(name, 0.0)))


def compared(one: float, other: float) -> str:
    """Say how a mismatch compares with another one: from a twentieth on it counts as a difference."""
    if one > 1.05 * other:
        return "worse than"
    return "better than" if other > 1.05 * one else "about as good as"


def less_far(weights: Sequence[float], *, anchor: str, box: bool) -> tuple[str, ...]:
    """Say what would keep a merge closer to its models, of what the recipe does not do yet."""
    n, advice = len(weights), []
    if anchor == "base":
        advice.append("use anchor: auto")
    if min(weights) < 0:
        advice.append("bring the negative weights towards 0")
    if n > 1 and max(weights) > (1 + 1e-9) / n:
        advice.append(f"lower the weights towards {1 / n:.2g}")
    if not box:
        advice.append("set box: true")
    return tuple(advice)
