"""The forecast of gradient mismatch, layer by layer, from what gradient matching sums on its way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merge_cli.report.inspection import layer_of, natural_key

SCHEMES = ("linear", "task_arithmetic", "gradient_matching")


@dataclass(frozen=True)
class MismatchReport:
    """How far each way of merging lies from the target of joint training, to second order.

    Each number is ||H̄ (m - target)|| in the metric of 1 / H₀ (equation 10 of Daheim et al. 2024, arXiv 2310.12808, with
    the gradients expanded to first order): 0 is no gradient mismatch.

    Attributes:
        layers: Layer -> scheme -> mismatch.
        total: Scheme -> mismatch over the model.
        measured: Quantity -> scheme -> what was measured on data; empty without data.
    """

    layers: Mapping[str, Mapping[str, float]]
    total: Mapping[str, float]
    measured: Mapping[str, Mapping[str, float | None]]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        measured = {what.replace(" ", "_"): numbers for what, numbers in self.measured.items()}
        return {"layers": self.layers, "total": self.total, "measured": measured}


def mismatch_report(
    sums: Mapping[str, Mapping[str, float]], measured: Mapping[str, Mapping[str, float | None]] | None = None
) -> MismatchReport:
    """Group the sums over tensors by layer.

    Args:
        sums: Tensor -> what gradient matching summed over it.
        measured: Quantity -> scheme -> what was measured on data.
    """
    squares: dict[str, dict[str, float]] = {}
    for name in sorted(sums, key=natural_key):
        layer = squares.setdefault(layer_of(name), dict.fromkeys(SCHEMES, 0.0))
        for scheme in SCHEMES:
            layer[scheme] += sums[name].get(f"mismatch_{scheme}", 0.0)
    total = {scheme: math.sqrt(sum(layer[scheme] for layer in squares.values())) for scheme in SCHEMES}
    layers = {name: {scheme: math.sqrt(x) for scheme, x in layer.items()} for name, layer in squares.items()}
    return MismatchReport(layers, total, measured or {})
