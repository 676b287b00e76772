"""Methods and steps on small tensors of torch that are written out in a test; the rest is merge_cli.testing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merge_cli.methods import find_method, find_step, method_names
from merge_cli.methods.contract import Input
from merge_cli.testing import Setup, params_for, run, tensors

Inputs = Mapping[Input, Tensor]
Numbers = Sequence[float]


def methods_with(parameter: str) -> list[str]:
    """Return the names of the methods that have a parameter, by its name in recipes."""
    found = {name: find_method(name).params.model_fields for name in method_names()}
    return [name for name in found if parameter in {each.alias or key for key, each in found[name].items()}]


def family(
    *,
    models: Sequence[Numbers],
    base: Numbers | None = None,
    fisher: Sequence[Numbers] | None = None,
    base_fisher: Numbers | None = None,
    curvature: Sequence[Numbers] | None = None,
    base_curvature: Numbers | None = None,
    gradients: Sequence[Numbers] | None = None,
) -> dict[Input, Tensor]:
    """Return the inputs of one tensor; deltas are there where the base is."""
    named = {
        Input.MODELS: models,
        Input.BASE: base,
        Input.FISHER: fisher,
        Input.BASE_FISHER: base_fisher,
        Input.CURVATURE: curvature,
        Input.BASE_CURVATURE: base_curvature,
        Input.GRADIENTS: gradients,
    }
    inputs = {key: _float32(rows) for key, rows in named.items() if rows is not None}
    if base is not None:
        inputs[Input.DELTAS] = inputs[Input.MODELS] - inputs[Input.BASE]
    return inputs


def _float32(rows: Any) -> Tensor:
    return rows.float().clone() if isinstance(rows, Tensor) else torch.tensor(np.asarray(rows), dtype=torch.float32)


def smooth_tensors(seed: int, n: int, sizes: Mapping[str, int]) -> dict[str, dict[Input, Tensor]]:
    """Return tensors of random real numbers, with every input."""
    numbers = tensors.smooth_tensors(seed, n, {name: (numel,) for name, numel in sizes.items()})
    return {name: {key: torch.from_numpy(rows) for key, rows in inputs.items()} for name, inputs in numbers.items()}


def merged(method: str, inputs: Inputs, /, *, seed: int = 0, **values: Any) -> Tensor:
    """Merge one tensor; parameters that are not given have their defaults."""
    return merged_model(method, {"tensor": inputs}, seed=seed, **values)["tensor"]


def merged_model(method: str, model: Mapping[str, Inputs], /, *, seed: int = 0, **values: Any) -> dict[str, Tensor]:
    """Merge several tensors."""
    found = find_method(method)
    n = len(next(iter(model.values()))[Input.MODELS])
    return run(found, params_for(found.params, n, **values), model, Setup(seed=seed)).tensors


def stepped(step: str, inputs: Inputs, /, *, seed: int = 0, **values: Any) -> dict[Input, Tensor]:
    """Return the inputs of one tensor after a preparing step."""
    found = find_step(step)
    params = params_for(found.params, len(inputs[Input.MODELS]), **values)
    deltas = run(found, params, {"tensor": inputs}, Setup(seed=seed)).tensors["tensor"]
    return {**inputs, Input.DELTAS: deltas, Input.MODELS: deltas + inputs[Input.BASE]}


def bits(tensor: Tensor) -> list[int]:
    """Return the bit patterns, which unlike values tell 0.0 from -0.0."""
    return tensor.contiguous().view(torch.int32).flatten().tolist()


def assert_close(left: Any, right: Any, *, rtol: float = 1e-5, atol: float = 3e-6) -> None:
    """Compare tensors, arrays or lists in float64, element by element."""
    pair = (each.double().cpu().numpy() if isinstance(each, Tensor) else np.asarray(each) for each in (left, right))
    np.testing.assert_allclose(*pair, rtol=rtol, atol=atol)
