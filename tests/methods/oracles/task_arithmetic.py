"""The base plus scaled task vectors."""

from __future__ import annotations

from typing import Any

from merge_cli.testing import PlainTensor, per_tensor
from tests import oracle as formulas


@per_tensor
def oracle(tensor: PlainTensor, params: Any) -> list[float]:
    return formulas.task_arithmetic(
        tensor.base, tensor.deltas, params.weight, scale=params.scale, normalize=params.normalize
    )
