"""Task vectors without their smallest and largest entries, from the definition: a sort, and two bounds."""

from __future__ import annotations

from typing import Any

from merge_cli.testing import PlainTensor, per_tensor


@per_tensor
def oracle(tensor: PlainTensor, params: Any) -> list[float]:
    divisor = sum(params.weight) if params.normalize and abs(sum(params.weight)) >= 1e-8 else 1.0
    merged = list(tensor.base)
    for delta, weight, density, gamma in zip(tensor.deltas, params.weight, params.density, params.gamma, strict=True):
        for j, kept in enumerate(without_outliers(delta, density, gamma)):
            merged[j] += params.scale * weight / divisor * kept
    return merged


def without_outliers(delta: list[float], density: float, gamma: float) -> list[float]:
    """Keep ``density`` of the entries after the ``gamma`` largest, and what is as large as one of them."""
    count = max(int(density * len(delta)), 1 if density > 0 else 0)
    dropped = min(int(gamma * len(delta)), len(delta) - count)
    magnitudes = sorted((abs(x) for x in delta), reverse=True)[dropped : dropped + count]
    return [x if magnitudes and magnitudes[-1] <= abs(x) <= magnitudes[0] else 0.0 for x in delta]
