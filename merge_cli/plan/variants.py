"""Variants of a merge: one recipe with several sets of parameters, each of which gives a merged model of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from merge_cli.checkpoint import Layout
from merge_cli.checkpoint.layers import layer_positions
from merge_cli.errors import RecipeError
from merge_cli.methods.contract import MeasureOver, Method, Params
from merge_cli.plan.companions import fisher_scales
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.matching import TensorMatch
from merge_cli.plan.model import TensorTask
from merge_cli.plan.parameters import ParameterLookup, check_measure_constants
from merge_cli.recipe import Origin, Recipe, check_recipe, said_of
from merge_cli.recipe.schema import Parameters
from merge_cli.recipe.values import plain_value

# A folder's name on every system, and nothing that a shell or a listing of digests takes for something else.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}")
# What a merge of variants writes beside their folders.
_TAKEN = frozenset({"merge_manifest.json", "recipe.yml", "sha256sums", "readme.md"})
_PARAMETERS: TypeAdapter[dict[str, Any]] = TypeAdapter(Parameters)


@dataclass(frozen=True)
class Variant:
    """A recipe with some of its parameters replaced.

    Attributes:
        name: What it is called, which is also its folder; empty for the recipe as it is.
        given: What was given in place of the recipe's parameters, as plain data.
        recipe: The whole recipe.
        own: The recipe with no parameters but the given ones, for what is to be said of these alone.
    """

    name: str
    given: Mapping[str, Any]
    recipe: Recipe
    own: Recipe

    @property
    def prefix(self) -> str:
        """Prefix of a sentence about it; nothing for the recipe as it is."""
        return f"variant '{self.name}': " if self.name else ""


VariantTasks = tuple[Variant, Sequence[TensorTask]]


def decide_variants(recipe: Recipe, variants: Mapping[str, Mapping[str, Any]] | None) -> tuple[Variant, ...]:
    """Return the variants of a recipe: the recipe as it is where None are asked for.

    Raises:
        RecipeError: Naming the variant, if its name is no name of a folder, or a parameter not one that is taken.
    """
    if variants is None:
        return (Variant("", {}, recipe, recipe),)
    if not variants:
        raise RecipeError("variants: expected at least one, got none", hint="leave variants out to merge the recipe")
    seen: dict[str, str] = {}
    for name in variants:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _TAKEN or name.endswith("."):
            raise RecipeError(
                f"variant {name!r}: expected a name for a folder, of up to 100 letters, digits and . _ = + -",
                hint="names such as 'a', '0.5' or 'lambda=0.5' are fine",
            )
        twin = seen.setdefault(name.lower(), name)
        if twin != name:
            raise RecipeError(f"variant '{name}': its folder is that of '{twin}' where case does not count")
    return tuple(variant_of(recipe, name, given) for name, given in variants.items())


def variant_of(recipe: Recipe, name: str, given: Mapping[str, Any]) -> Variant:
    """Return a variant of a recipe; what is given counts in place of what the recipe says, for all models or for one.

    Raises:
        RecipeError: If a parameter is not one that the method takes, in form or in name.
    """
    if not name:
        return Variant("", {}, recipe, recipe)
    origin = replace(recipe.origin, name=f"{recipe.origin.name}, variant '{name}'", lines={}, warnings=())
    values = _parsed(given, origin)
    plain = {key: plain_value(value) for key, value in values.items()}
    bare = tuple(entry.model_copy(update={"parameters": {}}) for entry in recipe.models)
    own = check_recipe(recipe.model_copy(update={"parameters": values, "models": bare}).with_origin(origin))
    models = tuple(
        entry.model_copy(update={"parameters": {key: values.get(key, own) for key, own in entry.parameters.items()}})
        for entry in recipe.models
    )
    whole = recipe.model_copy(update={"parameters": {**recipe.parameters, **values}, "models": models})
    if origin.text:
        origin = replace(origin, overrides=(*origin.overrides, *_overrides(recipe, plain)))
    return Variant(name, plain, whole.with_origin(origin), own)


def _parsed(given: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Return parameters as a recipe holds them."""
    if not isinstance(given, Mapping):
        raise RecipeError(f"{origin.name}: expected a mapping of parameters, got {str(given)[:40]!r}")
    try:
        return _PARAMETERS.validate_python(dict(given))
    except ValidationError as error:
        finding = error.errors()[0]
        raise RecipeError(f"{origin.at('parameters', *finding['loc'][:1])}: {said_of(finding)}") from error


def _overrides(recipe: Recipe, plain: Mapping[str, Any]) -> Iterator[str]:
    """Yield what ``--set`` would have to be given to make a variant of the recipe's text."""
    for key, value in plain.items():
        places = [f"models.{i}.parameters" for i, entry in enumerate(recipe.models) if key in entry.parameters]
        yield from (f"{place}.{key}={json.dumps(value)}" for place in ("parameters", *places))


def params_of(
    recipe: Recipe, variants: Sequence[Variant], inputs: Inputs, names: TensorMatch, layout: Layout, method: Method
) -> dict[str, tuple[Params, ...]]:
    """Return tensor -> the method's parameters for it in each variant; equal ones are one object.

    Raises:
        RecipeError: If a value is missing or not one that the method takes.
    """
    known: dict[Any, Params] = {}
    counted = [recipe.models.index(entry) for entry in inputs.entries]
    lookups = [
        ParameterLookup(variant.recipe, method, tuple(variant.recipe.models[i] for i in counted), known)
        for variant in variants
    ]
    positions = layer_positions(names.order, inputs.reference.config)
    merged = (name for name in layout.targets if name not in names.copied)
    return {name: tuple(lookup.for_tensor(name, positions.get(name, 0.0)) for lookup in lookups) for name in merged}


def tasks_of(
    variants: Sequence[Variant], merged: Sequence[TensorTask], params: Mapping[str, Sequence[Params]]
) -> list[VariantTasks]:
    """Return each variant with the tasks that go through the method, with its own parameters."""
    return [
        (variant, [replace(task, params=params[task.target.name][i]) for task in merged])
        for i, variant in enumerate(variants)
    ]


def check_measures(variants: Sequence[VariantTasks], method: Method) -> None:
    """Refuse parameters of a measure over the whole model that vary between tensors.

    Raises:
        RecipeError: Naming the parameter.
    """
    for variant, tasks in variants:
        params = [task.params for task in tasks if task.params is not None]
        measure = method.measure(params[0]) if params else None
        if measure is not None and measure.over is MeasureOver.MODEL:
            check_measure_constants(variant.recipe, measure, params)


def common_scales(variants: Sequence[VariantTasks], inputs: Inputs, method: Method) -> tuple[tuple[float, ...], float]:
    """Return what Fishers are multiplied with, see :func:`fisher_scales`; this is done once for all variants.

    Raises:
        RecipeError: If it is not the same in all, or not known.
    """
    each = [
        fisher_scales(variant.recipe, inputs, method, tasks[0].params if tasks else None) for variant, tasks in variants
    ]
    for (variant, _), scales in zip(variants, each, strict=True):
        if scales != each[0]:
            raise RecipeError(
                f"{variant.recipe.origin.name}: curvature, examples and base_examples are not those of variant "
                f"'{variants[0][0].name}', and Fishers are scaled once for all variants",
                hint="merge it on its own",
            )
    return each[0]
