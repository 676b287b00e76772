"""A family of checkpoints with everything that makes streaming hard, and recipes for every method over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import Params, is_per_model
from merge_cli.plan import MergePlan, build_plan
from merge_cli.testing import typical_params
from tests.checkpoints import recipe_over, write_checkpoint

N = 3
WEIGHTS = [0.5, 0.75, 1.25]

# Longer than a range of the smallest blocks; longer than a block; shorter; one element; none; no dimension at all.
SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "layers.0.long": ((601, 503), torch.bfloat16),
    "layers.0.odd": ((37, 521), torch.float32),
    "layers.1.half": ((3, 1001), torch.float16),
    "layers.1.one": ((1, 1), torch.float32),
    "layers.1.none": ((0, 7), torch.bfloat16),
    "scale": ((), torch.float32),
}


def write_family(folder: Path) -> Path:
    """Write a base, three models, and a Fisher and a gradient for each."""
    for number, name in enumerate(["base", "one", "two", "three"]):
        source = torch.Generator().manual_seed(number)
        write_checkpoint(folder / name, _model(number, source))
        fishers = {tensor: _normal(shape, source).square() for tensor, (shape, _) in SHAPES.items()}
        gradients = {tensor: _normal(shape, source) for tensor, (shape, _) in SHAPES.items()}
        said = {"train_examples": str(100 + number)}
        write_checkpoint(folder / f"fisher-{name}", fishers, config=None, metadata=said)
        write_checkpoint(folder / f"gradient-{name}", gradients, config=None, metadata=said)
    return folder


def _model(number: int, source: torch.Generator) -> dict[str, Tensor]:
    common = torch.Generator().manual_seed(17)
    tensors: dict[str, Tensor] = {}
    for name, (shape, dtype) in SHAPES.items():
        base, delta = _normal(shape, common), _normal(shape, source)
        tensors[name] = (base + 0.1 * delta * (number > 0)).to(dtype)
    tensors["ids"] = torch.arange(20_000) + number
    tensors["flags"] = torch.tensor([True, False, True])
    return tensors


def _normal(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=source)


def every_method() -> list[Any]:
    """Return every method with its usual parameters, and with each other value of a parameter that has few."""
    cases = []
    for name in method_names():
        method = find_method(name)
        typical, *others = typical_params(method.params, min(N, method.models[1] or N))
        cases.append(pytest.param(name, typical, id=name))
        for params in others:
            changed = [key for key in type(params).model_fields if getattr(params, key) != getattr(typical, key)]
            values = "-".join(f"{key}={getattr(params, key)}" for key in changed)
            cases.append(pytest.param(name, params, id=f"{name}-{values}"))
    return cases


def recipe_for(name: str, params: Params, **more: Any) -> dict[str, Any]:
    """Return a recipe for a method with these parameters; every input that it could ask for is named."""
    method = find_method(name)
    models: list[dict[str, Any]] = []
    for i, model in enumerate(["one", "two", "three"][: method.models[1]]):
        own = {"weight": WEIGHTS[i]}
        for key, field in type(params).model_fields.items():
            if is_per_model(field) and key != "weight" and getattr(params, key)[i] is not None:
                own[field.alias or key] = getattr(params, key)[i]
        models.append({"model": model, "fisher": f"fisher-{model}", "gradient": f"gradient-{model}", "parameters": own})
    shared = {
        field.alias or key: getattr(params, key)
        for key, field in type(params).model_fields.items()
        if not is_per_model(field) and getattr(params, key) is not None
    }
    return {
        "merge_method": name,
        "base_model": "base",
        "base_fisher": "fisher-base",
        "models": models,
        "parameters": shared,
        "seed": 3,
        **more,
    }


def planned(folder: Path, content: dict[str, Any], **options: Any) -> MergePlan:
    """Plan a recipe over the family."""
    return build_plan(recipe_over(folder, content), **options)
