"""Randomly dropped task vectors, merged by elected signs."""

from __future__ import annotations

from typing import Any

from merge_cli.testing import PlainTensor, per_tensor
from tests import oracle as formulas
from tests.methods.oracles.dare_linear import masks_of


@per_tensor
def oracle(tensor: PlainTensor, params: Any) -> list[float]:
    return formulas.dare_ties(
        tensor.base,
        tensor.deltas,
        masks_of(tensor, params.density),
        params.weight,
        params.density,
        scale=params.scale,
        normalize=params.normalize,
        rescale=params.rescale,
        elect=params.elect,
        zero_sum=params.zero_sum,
    )
