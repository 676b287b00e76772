"""The preparing step that drops entries at random."""

from __future__ import annotations

from typing import Any

from merge_cli.testing import PlainTensor, per_tensor
from tests import oracle as formulas
from tests.methods.oracles.dare_linear import masks_of


@per_tensor
def oracle(tensor: PlainTensor, params: Any) -> list[list[float]]:
    densities = [1 - params.drop_rate] * len(tensor.deltas)
    return formulas.dare(tensor.deltas, masks_of(tensor, densities), densities, rescale=params.rescale)
