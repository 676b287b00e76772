"""The preparing step that keeps the largest entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge_cli.testing import PlainTensor
from tests import oracle as formulas
from tests.methods.oracles import of_each


def oracle(tensors: Mapping[str, PlainTensor], params: Any) -> dict[str, list[list[float]]]:
    deltas = of_each(tensors, "deltas")
    kept = formulas.keep_largest(deltas, [params.density] * len(deltas), scope=params.scope)
    return {name: [model[name] for model in kept] for name in tensors}
