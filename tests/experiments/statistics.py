"""Paired differences with intervals, and how well a number tells failures from the rest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120),
    *(2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval."""

    mean: float
    half: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its 95 % interval; infinitely wide for a single value."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Interval(mean, math.inf, count)
    quantile = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else 1.96
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(count), count)


def area_under_curve(scores: Sequence[float], failed: Sequence[bool]) -> float | None:
    """The probability that a failure has a higher score than a success; None where there is only one kind."""
    bad = [score for score, each in zip(scores, failed, strict=True) if each]
    good = [score for score, each in zip(scores, failed, strict=True) if not each]
    if not bad or not good:
        return None
    wins = sum((x > y) + (x == y) / 2 for x in bad for y in good)
    return wins / (len(bad) * len(good))
