"""Gradient mismatch measured on data: the exact error of a merge, in gradients.

Equation 10 of Daheim et al. 2024, arXiv 2310.12808: a merge θ differs from joint training by what
sum_t α_t [g_t(θ) - g_t(θ_t)] says, with g_t the gradient of the summed loss of task t.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from merge_cli.checkpoint import Checkpoint, Reader, open_checkpoint
from merge_cli.errors import RecipeError
from merge_cli.fisher import FisherSettings, Source, estimate_fisher, read_any
from merge_cli.plan import MergePlan, build_plan
from merge_cli.recipe import Recipe
from merge_cli.report.mismatch import SCHEMES
from merge_cli.run import merge


def measure_mismatch(
    plan: MergePlan,
    data: Sequence[str],
    *,
    prior_precision: float,
    examples: int,
    device: str,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Merge by each scheme into a temporary folder and measure the gradient mismatch there.

    Args:
        plan: A plan of gradient_matching.
        data: The data set of each model, in order.
        prior_precision: δ, as gradient matching has resolved it.
        examples: How many examples of each data set to use; gradients are scaled up to the training sets.
        device: Where the models run.
        say: Is told what is being done.

    Returns:
        Scheme -> ||sum_t α_t [g_t(θ) - g_t(θ_t)]|| in the metric of 1 / H_0.

    Raises:
        RecipeError: If there is not one data set per model.
    """
    if len(data) != plan.n:
        raise RecipeError(f"--data is given {len(data)} times, the recipe has {plan.n} models")
    models = [each.checkpoint for each in plan.inputs if each.role.startswith("model ")]
    with tempfile.TemporaryDirectory(prefix="merge-cli-") as scratch:
        folder = Path(scratch)

        def gradient(model: Checkpoint | Path, i: int, name: str) -> Checkpoint:
            say(f"gradient of {name} on {data[i]}")
            path = model if isinstance(model, Path) else model.root
            settings = FisherSettings(
                model=str(path), source=Source(data[i]), examples=examples, device=device, gradient=True,
                train_examples=max(1, round(plan.scales[i])),
            )  # fmt: skip
            out = folder / f"{name}-{i}"
            estimate_fisher(settings, out, sync=False)
            return open_checkpoint(out / "gradient")

        own = [gradient(model, i, f"model-{i}") for i, model in enumerate(models)]
        found: dict[str, float] = {}
        for scheme in SCHEMES:
            merged = folder / scheme
            merge(build_plan(_recipe(plan.recipe, scheme), device=device), merged, sync=False)
            at = [gradient(merged, i, f"{scheme}-at") for i in range(plan.n)]
            found[scheme] = _norm(plan, own, at, prior_precision)
    return found


def _recipe(recipe: Recipe, scheme: str) -> Recipe:
    """Return the recipe of another scheme for the same models; averaging takes them equally."""
    if scheme == recipe.merge_method:
        return recipe.model_copy(update={"save_precision": False}).with_origin(recipe.origin)
    weights = {"weight": recipe.parameters.get("weight", 1.0)} if scheme != "linear" else {"weight": 1.0}
    models = tuple(
        entry.model_copy(
            update={
                "fisher": None,
                "gradient": None,
                "parameters": {k: v for k, v in entry.parameters.items() if k == "weight" and scheme != "linear"},
            }
        )
        for entry in recipe.models
    )
    changes = {
        "merge_method": scheme, "models": models, "parameters": weights, "base_fisher": None, "save_precision": False,
    }  # fmt: skip
    return recipe.model_copy(update=changes).with_origin(recipe.origin)


def _norm(plan: MergePlan, own: Sequence[Checkpoint], at: Sequence[Checkpoint], prior_precision: float) -> float:
    base = next((each.checkpoint for each in plan.inputs if each.role == "base fisher"), None)
    everything = [*own, *at, *([base] if base is not None else [])]
    total = 0.0
    with Reader(file for checkpoint in everything for file in checkpoint.files) as reader:
        for task in plan.merged:
            name = task.place.name
            gaps = [_read(reader, there, name) - _read(reader, here, name) for here, there in zip(own, at, strict=True)]
            weights: Sequence[float] = getattr(task.params, "weight", (1.0,) * len(gaps))
            gap = sum((w * g for w, g in zip(weights, gaps, strict=True)), torch.zeros_like(gaps[0]))
            curvature = prior_precision + (plan.base_scale * _read(reader, base, name) if base is not None else 0.0)
            total += float((gap.square() / curvature).sum())
    return math.sqrt(total)


def _read(reader: Reader, checkpoint: Checkpoint, name: str) -> Tensor:
    stored = checkpoint.find(name)
    if stored is None:
        raise RecipeError(f"'{name}' is merged, but it is no parameter whose gradient could be measured")
    return read_any(reader, stored).double()
