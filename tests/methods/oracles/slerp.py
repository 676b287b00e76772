"""The arc between base and model."""

from __future__ import annotations

from typing import Any

from merge_cli.testing import PlainTensor, per_tensor
from tests import oracle as formulas


@per_tensor
def oracle(tensor: PlainTensor, params: Any) -> list[float]:
    return formulas.slerp(tensor.base, tensor.models[0], params.t)
