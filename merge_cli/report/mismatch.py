"""Forecast of gradient mismatch, layer by layer, from the sums of gradient matching."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from merge_cli.checkpoint.layers import layer_of
from merge_cli.methods.contract.prospects import compared
from merge_cli.report.inspection import natural_key

# Below this share of the largest one a mismatch is rounding.
_NOTHING = 1e-6
SCHEMES = ("linear", "task_arithmetic", "gradient_matching")


@dataclass(frozen=True)
class MismatchReport:
    """Distance of each way of merging from the target of joint training, to second order.

    Each number is ||H̄ (m - target)|| in the metric of 1 / H₀ (equation 10 of Daheim et al. 2024, arXiv 2310.12808, with
    the gradients expanded to first order): 0 is no gradient mismatch.

    Attributes:
        layers: Layer -> scheme -> mismatch.
        total: Scheme -> mismatch over the model.
        measured: Quantity -> scheme -> what was measured on data; empty without data.
        losses: Data set -> scheme, or ``alone`` for the model that was trained on it -> mean loss of an example, in
            nats; empty without data.
        removes: Whether a weight is negative: then neither a small mismatch nor a small loss makes a merge better.
    """

    layers: Mapping[str, Mapping[str, float]]
    total: Mapping[str, float]
    measured: Mapping[str, Mapping[str, float | None]]
    losses: Mapping[str, Mapping[str, float]]
    removes: bool = False

    @property
    def forecast(self) -> tuple[str, ...]:
        """The schemes whose mismatch is no matter of course: gradient matching has none unless it is held back."""
        return tuple(name for name in SCHEMES if name != "gradient_matching" or self.total[name] > _NOTHING * self.most)

    @property
    def most(self) -> float:
        """The largest mismatch of all schemes."""
        return max(self.total.values())

    def verdicts(self) -> tuple[str, ...]:
        """Say in sentences what the numbers come to."""
        said = []
        if not self.removes:
            arithmetic, average = self.total["task_arithmetic"], self.total["linear"]
            how = compared(arithmetic, average)
            said.append(
                f"task arithmetic is expected to be {how} the average (mismatch {arithmetic:.4g}, {average:.4g})"
            )
        if "gradient_matching" not in self.forecast:
            said.append("gradient matching has a mismatch of 0 by construction; --data measures what it has in truth")
        return (*said, *self._measured_verdict())

    def _measured_verdict(self) -> Iterator[str]:
        if not self.losses or self.removes:
            return
        means = {name: math.fsum(each[name] for each in self.losses.values()) / len(self.losses) for name in SCHEMES}
        best, *others = sorted(SCHEMES, key=means.__getitem__)
        beside = ", ".join(f"{means[name]:.4g} for {title_of(name)}" for name in others)
        yield f"measured, {title_of(best)} has the least mean loss: {means[best]:.4g} nats per example, {beside}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        measured = {what.replace(" ", "_"): numbers for what, numbers in self.measured.items()}
        return {
            "layers": self.layers,
            "total": self.total,
            "measured": measured,
            "losses": self.losses,
            "verdicts": list(self.verdicts()),
        }


def title_of(scheme: str) -> str:
    """Return what a user calls a scheme."""
    return "the average" if scheme == "linear" else scheme.replace("_", " ")


def mismatch_report(
    sums: Mapping[str, Mapping[str, float]],
    measured: Mapping[str, Mapping[str, float | None]] | None = None,
    losses: Mapping[str, Mapping[str, float]] | None = None,
    *,
    removes: bool = False,
) -> MismatchReport:
    """Group the sums over tensors by layer.

    Args:
        sums: Tensor -> what gradient matching summed over it.
        measured: Quantity -> scheme -> what was measured on data.
        losses: Data set -> scheme or ``alone`` -> mean loss of an example.
        removes: Whether a weight is negative.
    """
    squares: dict[str, dict[str, float]] = {}
    for name in sorted(sums, key=natural_key):
        layer = squares.setdefault(layer_of(name), dict.fromkeys(SCHEMES, 0.0))
        for scheme in SCHEMES:
            layer[scheme] += sums[name].get(f"mismatch_{scheme}", 0.0)
    total = {scheme: math.sqrt(sum(layer[scheme] for layer in squares.values())) for scheme in SCHEMES}
    layers = {name: {scheme: math.sqrt(x) for scheme, x in layer.items()} for name, layer in squares.items()}
    return MismatchReport(layers, total, measured or {}, losses or {}, removes)
