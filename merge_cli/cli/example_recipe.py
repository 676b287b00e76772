"""Example recipe for a method, made from its parameters."""

from __future__ import annotations

from typing import Any

import yaml

from merge_cli.methods import find_method
from merge_cli.methods.contract import Input, field_examples, is_per_model, must_be_given


def example_recipe(name: str) -> str:
    """Return a recipe for two models (one where the method takes one) that gives every required parameter.

    Of each model it also gives what the method has an example of.
    """
    method = find_method(name)
    per_model, shared = example_parameters(name)
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


def example_parameters(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return examples of a method's parameters: of those with one value per model, and of others that must be given."""
    per_model: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for key, field in find_method(name).params.model_fields.items():
        if examples := field_examples(field):
            if is_per_model(field):
                per_model[field.alias or key] = examples[0]
            elif must_be_given(field):
                shared[field.alias or key] = examples[0]
    return per_model, shared
