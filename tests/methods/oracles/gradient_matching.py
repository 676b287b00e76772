"""Uncertainty-based gradient matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge_cli.testing import PlainTensor
from tests import oracle as formulas
from tests.methods.oracles import Model, of_base, of_each


def oracle(tensors: Mapping[str, PlainTensor], params: Any) -> Model:
    scales = formulas.matching_scales(
        of_each(tensors, "curvature"),
        base_curvature=of_base(tensors, "base_curvature"),
        prior_precision=params.prior_precision,
        curvature_floor=params.curvature_floor,
        anchor=params.anchor,
        weights=params.weight,
        deltas=of_each(tensors, "deltas"),
        gradients=of_each(tensors, "gradients"),
    )
    return {
        name: formulas.gradient_matching(
            tensor.base,
            tensor.deltas,
            tensor.curvature,
            params.weight,
            scales,
            base_curvature=tensor.base_curvature,
            gradients=tensor.gradients if params.anchor == "measured" else None,
            kappa=params.kappa,
            box=params.box,
        )
        for name, tensor in tensors.items()
    }
