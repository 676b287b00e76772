"""An example recipe for a method, made from what the method says of itself."""

from __future__ import annotations

from typing import Any

import yaml

from merge_cli.methods import find_method
from merge_cli.methods.contract import Input, is_per_model

_VALUES: dict[str, Any] = {"weight": 0.5, "density": 0.5, "t": 0.5}


def example_recipe(name: str) -> str:
    """Return a recipe for two models (one where the method takes one) that gives every required parameter."""
    method = find_method(name)
    required = {
        field.alias or key: _VALUES.get(key, 1.0)
        for key, field in method.params.model_fields.items()
        if key in _VALUES or (field.is_required() and not is_per_model(field))
    }
    per_model = {key: value for key, value in required.items() if is_per_model(method.params.model_fields[key])}
    shared = {key: value for key, value in required.items() if key not in per_model}
    available = frozenset({Input.BASE_FISHER, Input.BASE_CURVATURE})
    needs = method.needs(method.params.model_construct(), available)
    count = min(2, method.models[1] or 2)
    models: list[dict[str, Any]] = []
    for i in range(1, count + 1):
        entry: dict[str, Any] = {"model": f"./fine-tuned-{i}"}
        if needs & {Input.FISHER, Input.CURVATURE}:
            entry["fisher"] = f"./fisher-{i}"
        if per_model:
            entry["parameters"] = dict(per_model)
        models.append(entry)
    recipe: dict[str, Any] = {"merge_method": name}
    if Input.BASE in needs:
        recipe["base_model"] = "./base"
    if needs & {Input.BASE_FISHER, Input.BASE_CURVATURE}:
        recipe["base_fisher"] = "./fisher-base"
    recipe["models"] = models
    if shared:
        recipe["parameters"] = shared
    return yaml.safe_dump(recipe, sort_keys=False)
