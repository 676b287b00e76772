"""The average weighted by Fisher diagonals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge_cli.testing import PlainTensor
from tests import oracle as formulas
from tests.methods.oracles import Model, of_base, of_each


def oracle(tensors: Mapping[str, PlainTensor], params: Any) -> Model:
    return formulas.fisher(
        of_each(tensors, "models"),
        of_each(tensors, "fisher"),
        params.weight,
        normalize_fisher=params.normalize_fisher,
        fisher_floor=params.fisher_floor,
        favour=params.favour,
        base=of_base(tensors, "base") if params.include_base else None,
        base_fisher=of_base(tensors, "base_fisher") if params.include_base else None,
    )
