"""Randomly dropped task vectors, added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merge_cli.testing import PlainTensor, per_tensor
from tests import oracle as formulas


@per_tensor
def oracle(tensor: PlainTensor, params: Any) -> list[float]:
    return formulas.dare_linear(
        tensor.base,
        tensor.deltas,
        masks_of(tensor, params.density),
        params.weight,
        params.density,
        scale=params.scale,
        normalize=params.normalize,
        rescale=params.rescale,
    )


def masks_of(tensor: PlainTensor, densities: Sequence[float]) -> list[list[int]]:
    """The masks of each model, by the independent generator."""
    numel = len(tensor.base)
    return [formulas.keep_mask((0, 0, model, tensor.name), numel, density) for model, density in enumerate(densities)]
