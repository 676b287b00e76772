"""Trim, elect, disjoint merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge_cli.testing import PlainTensor
from tests import oracle as formulas
from tests.methods.oracles import Model, of_base, of_each


def oracle(tensors: Mapping[str, PlainTensor], params: Any) -> Model:
    return formulas.ties(
        of_base(tensors, "base"),
        of_each(tensors, "deltas"),
        params.weight,
        params.density,
        scale=params.scale,
        normalize=params.normalize,
        trim=params.trim,
        elect=params.elect,
        zero_sum=params.zero_sum,
    )
