"""Warnings and notes of a plan, from recipe, headers and files beside the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from merge_cli.checkpoint import DType
from merge_cli.errors import RecipeError
from merge_cli.methods.contract import COMPANIONS, Method
from merge_cli.plan.companions import stale_expert_warnings
from merge_cli.plan.configs import config_notes, config_warnings
from merge_cli.plan.filters import filter_notes, filter_warnings
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.matching import TensorMatch
from merge_cli.plan.model import MergePlan, TensorTask
from merge_cli.plan.side_files import config_donor
from merge_cli.plan.variants import VariantTasks
from merge_cli.plan.vocabulary_check import vocabulary_warnings
from merge_cli.recipe import ModelEntry, Recipe
from merge_cli.text import count_of, listed


def plan_warnings(
    recipe: Recipe, inputs: Inputs, names: TensorMatch, method: Method, variants: Sequence[VariantTasks]
) -> Iterator[str]:
    """Yield warnings in plain words; what only the tensors' numbers tell is not among them.

    Args:
        recipe: What is asked for.
        inputs: What is read.
        names: Which tensors are merged.
        method: The method.
        variants: Of the recipe, each with the tasks that go through the method.
    """
    merged = variants[0][1]
    yield from recipe.origin.warnings
    for variant, _ in variants:
        if variant.name:
            yield from variant.own.origin.warnings
            yield from filter_warnings(variant.own, [task.target.name for task in merged])
    yield from names.warnings
    wide = [task.target.name for task in merged if any(model.dtype is DType.F64 for model in task.models)]
    if wide:
        yield f"{listed(wide, most=3)}: float64 inputs are merged in float32"
    narrowed = [
        task.target.name
        for task in merged
        if any(model.dtype.itemsize > task.target.dtype.itemsize for model in task.models)
    ]
    if narrowed and not (recipe.dtype or recipe.out_dtype):
        yield (
            f"{listed(narrowed, most=3)}: models hold wider numbers than {inputs.reference.label}, whose dtype the "
            "output has; give dtype to keep them"
        )
    yield from _unused(recipe, inputs)
    yield from _listed_twice(inputs)
    yield from filter_warnings(recipe, [task.target.name for task in merged])
    yield from _base_with_a_weight(recipe, inputs)
    for variant, tasks in variants:
        yield from (f"{variant.prefix}{caution}" for caution in _cautions(recipe, method, tasks))
    yield from config_warnings(inputs.parts, config_donor(inputs, names))
    yield from vocabulary_warnings(inputs)
    yield from stale_expert_warnings(inputs)
    if not inputs.reference.config:
        yield f"{inputs.reference.label} has no config.json, so neither has the output; transformers will not load it"


def plan_notes(recipe: Recipe, inputs: Inputs, names: TensorMatch, variants: Sequence[VariantTasks]) -> Iterator[str]:
    """Yield what was set right, or is done because the recipe says so: a strict merge allows these."""
    yield from inputs.notes()
    yield from names.notes
    yield from config_notes(inputs.parts, config_donor(inputs, names))
    for variant, tasks in variants:
        yield from filter_notes(variant.own, tasks, inputs.entries)
    without = [entry for entry in _base_entries(recipe, inputs) if not entry.parameters]
    if without:
        yield f"{without[0].model} is the base and one of the models: its task vector is zero, so it is left out"
    if names.dropped:
        yield f"{count_of(names.dropped, 'tensor')} left out, as the recipe says"


def _base_entries(recipe: Recipe, inputs: Inputs) -> list[ModelEntry]:
    """Return the models of a recipe that are its base, whose task vectors are zero and are left out."""
    return [entry for entry in recipe.models if entry not in inputs.entries]


def _base_with_a_weight(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """Say that a base which is listed as a model with parameters does not count; published recipes list it without."""
    for entry in _base_entries(recipe, inputs):
        if entry.parameters:
            yield (
                f"{entry.model} is the base and one of the models: its task vector is zero, so it is left out and its "
                f"{listed(entry.parameters)} not used"
            )


def _unused(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """Name the inputs that the recipe gives and the method does not read."""
    if inputs.base is not None and not inputs.uses_base and inputs.base not in inputs.models:
        yield (
            f"{recipe.merge_method} does not use the base's weights; {recipe.base_model} gives configuration and "
            "tokenizer"
        )
    for each in COMPANIONS:
        models = [entry.model for entry in recipe.models if entry.companion(each.kind)]
        if models and each.kind not in inputs.companions:
            so = " with these parameters" if each.optional else ""
            yield f"the {each.title}s of {listed(models)} are not used by {recipe.merge_method}{so}"
    for each in COMPANIONS:
        if recipe.base_companion(each.kind) is not None and each.kind not in inputs.base_companions:
            yield f"{each.base_key} is not used by {recipe.merge_method} with these parameters"


def _listed_twice(inputs: Inputs) -> Iterator[str]:
    """Name models that stand in the recipe more than once, under one path or under several."""
    places: dict[Path, list[int]] = {}
    for i, model in enumerate(inputs.models):
        places.setdefault(model.root.resolve(), []).append(i)
    for same in places.values():
        if len(same) > 1:
            labels = listed(dict.fromkeys(inputs.models[i].label for i in same), most=3)
            yield f"{labels} is merged {len(same)} times; name it once, with the weights added up"


def _cautions(recipe: Recipe, method: Method, merged: Sequence[TensorTask]) -> Iterator[str]:
    """Say what is unusual about the parameters: once, though every layer may have parameters of its own."""
    said: dict[int, str] = {}
    for task in merged:
        if id(task.params) not in said:
            said[id(task.params)] = method.caution(task.params)
    unusual = [(task.target.name, said[id(task.params)]) for task in merged if said[id(task.params)]]
    if unusual:
        name, text = unusual[0]
        everywhere = len(unusual) == len(merged) and len({each for _, each in unusual}) == 1
        where = "" if everywhere else f" (so for {name}; unusual for {len(unusual)} of {len(merged)} tensors)"
        yield f"{recipe.merge_method}: {text}{where}"


def refuse_warnings(plan: MergePlan) -> None:
    """Turn the warnings of a plan into an error.

    Raises:
        RecipeError: With every warning, if there is one.
    """
    if plan.warnings:
        lines = "\n".join(f"  {warning}" for warning in plan.warnings)
        raise RecipeError(
            f"strict allows no warnings, the plan has {len(plan.warnings)}:\n{lines}",
            hint="fix the recipe or the models, or merge without --strict",
        )
