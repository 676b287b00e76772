"""Baselines for gradient matching: recipes and folders of other ways to merge the same models."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from merge_cli.checkpoint import SIDE_PATTERNS, Checkpoint, open_checkpoint
from merge_cli.errors import MergeError, RecipeError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.recipe import Recipe
from merge_cli.recipe.schema import Exclusion
from merge_cli.run import merge


def recipe_of(recipe: Recipe, scheme: str, exclude: tuple[Exclusion, ...]) -> Recipe:
    """Return the recipe of another way to merge the same tensors of the same models.

    The average is task arithmetic that takes each of n models with weight 1 / n: so it reads the base too, and what the
    recipe excludes is the same in every way.

    Args:
        recipe: Of gradient matching.
        scheme: ``gradient_matching``, ``task_arithmetic`` or ``linear``, the average.
        exclude: What is not merged.
    """
    if scheme == "gradient_matching":
        changes = {"exclude": exclude, "save_precision": False}
        return recipe.model_copy(update=changes).with_origin(recipe.origin)
    average = scheme == "linear"
    models = tuple(
        entry.model_copy(
            update={
                "fisher": None,
                "gradient": None,
                "parameters": {k: v for k, v in entry.parameters.items() if k == "weight" and not average},
            }
        )
        for entry in recipe.models
    )
    weight = 1 / len(models) if average else recipe.parameters.get("weight", 1.0)
    changes = {
        "merge_method": "task_arithmetic", "models": models, "parameters": {"weight": weight}, "base_fisher": None,
        "prepare": {} if average else recipe.prepare, "exclude": exclude, "save_precision": False,
    }  # fmt: skip
    return recipe.model_copy(update=changes).with_origin(recipe.origin)


def _with_own(exclusion: Exclusion, reference: str, model: Checkpoint) -> Exclusion:
    """Copy tensors from this model instead of another one, or leave them out where it has none."""
    if exclusion.source is None:
        return exclusion
    names = (*model.tensors, *model.tied)
    if any(fnmatchcase(name, exclusion.pattern) for name in names):
        return exclusion.model_copy(update={"source": reference})
    return exclusion.model_copy(update={"source": None, "drop": True})


def merged_for(plan: MergePlan, models: Sequence[Checkpoint], i: int, scheme: str, folder: Path) -> Checkpoint:
    """Merge below a folder, so that the result does the task of one of the models.

    Where the recipe copies tensors from a model, such as the head, they are copied from this one; configuration and
    tokenizer are this one's too, because the base may be of another architecture.

    Raises:
        RecipeError: If this model has no such tensors.
    """
    exclude = tuple(_with_own(each, plan.recipe.models[i].model, models[i]) for each in plan.recipe.exclude)
    copies = any(each.source for each in plan.recipe.exclude)
    out = folder / (f"model-{i}" if copies else "model")
    try:
        if not out.exists():
            recipe = recipe_of(plan.recipe, scheme, exclude)
            merge(build_plan(recipe, device=plan.device), out, sync=False, input_digests=False)
    except MergeError as error:
        if not copies or error.exit_code not in (2, 3):
            raise
        raise RecipeError(
            f"the heads differ, so the joint loss is not defined: with what the recipe copies taken from "
            f"{models[i].label}, {error.message}",
            hint="give mismatch models with heads of the same kind, or forecast without --data",
        ) from error
    root = models[i].root
    for pattern in SIDE_PATTERNS if root.is_dir() else ():
        for path in root.glob(pattern):
            if path.is_file() and not path.name.endswith((".index.json", ".py")):
                shutil.copyfile(path, out / path.name)
    return open_checkpoint(out, label=scheme)
