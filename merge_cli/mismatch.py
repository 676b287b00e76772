"""Gradient mismatch measured on data: how far a merge is from joint training, in gradients and in losses.

With g_t the gradient of the summed loss of task t, a merge θ is measured by

* the gradient mismatch ||sum_t α_t [g_t(θ) - g_t(θ_t)]||,
* the joint gradient ||sum_t α_t g_t(θ) + H_0 (θ - θ_0)||, which is zero where joint training ends and which the
  forecast without data approximates,

both in the metric of 1 / H_0, and by

* the increase of the losses, sum_t [l_t(θ) - l_t(θ_t)],
* the fidelity: that increase over what the quadratic model of the losses says that it is.

Source:
    Equation 10 of Daheim et al. 2024, arXiv 2310.12808. Fidelity is this project's: gradient matching is as good as
    the expansion of the losses to second order that it is derived from.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from merge_cli.checkpoint import Checkpoint, Reader, open_checkpoint
from merge_cli.errors import RecipeError
from merge_cli.fisher import FisherSettings, Probe, load_for, make_probe, read_tensor, squared_norm, write_gradient
from merge_cli.plan import MergePlan, build_plan
from merge_cli.recipe import Recipe
from merge_cli.report.mismatch import SCHEMES
from merge_cli.run import merge

# Fidelity from which on the quadratic model does not hold.
_WORST_FIDELITY = 4.0
# An increase of the losses below this share of them is rounding.
_NEGLIGIBLE = 1e-5


@dataclass(frozen=True)
class Measured:
    """What was measured on data.

    Attributes:
        values: Quantity (``gradient mismatch``, ``joint gradient``, ``loss increase``, ``fidelity``) -> scheme ->
            number; None where a fidelity has no meaning, because the quadratic model says that no loss changes.
        warnings: What predicts failure, in plain words.
    """

    values: dict[str, dict[str, float | None]]
    warnings: tuple[str, ...]


def measure_mismatch(
    plan: MergePlan,
    data: Sequence[str],
    settings: FisherSettings,
    *,
    prior_precision: float,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Merge by each scheme into a temporary folder and measure there, with the true labels of all data sets.

    Args:
        plan: A plan of gradient_matching.
        data: The data set of each model, in order.
        settings: How to read the data and run the models; model and source are replaced by each of them in turn.
        prior_precision: δ, as gradient matching has resolved it.
        say: Is told what is being done.

    Raises:
        RecipeError: If there is not one data set per model, or a model is a merged one, whose data are several.
        CheckpointError: If a model or data set cannot be used.
    """
    _check(plan, data)
    by_role = {each.role: each.checkpoint for each in plan.inputs}
    models = [by_role[f"model {i}"] for i in range(plan.n)]
    with tempfile.TemporaryDirectory(prefix="merge-cli-") as scratch:
        folder = Path(scratch)
        probes, own = _probe_experts(plan, models, data, settings, folder, say)
        found = []
        for scheme in SCHEMES:
            say(f"{scheme} on all data")
            there = folder / scheme
            again = build_plan(_recipe(plan.recipe, scheme), device=plan.device)
            merge(again, there / "model", sync=False, input_digests=False)
            merged = open_checkpoint(there / "model", label=scheme)
            loaded = load_for(merged, settings)
            at = [
                _At(write_gradient(loaded, merged, probe, there / str(i), scale=scale), open_checkpoint(there / str(i)))
                for i, (probe, scale) in enumerate(zip(probes, _scales(plan, probes), strict=True))
            ]
            del loaded
            found.append(_compare(plan, merged, models, own, at, prior_precision))
            shutil.rmtree(there)
    values = {
        what: {scheme: getattr(each, what.replace(" ", "_")) for scheme, each in zip(SCHEMES, found, strict=True)}
        for what in ("gradient mismatch", "joint gradient", "loss increase", "fidelity")
    }
    return Measured(values, tuple(_warnings(plan, dict(zip(SCHEMES, found, strict=True)))))


@dataclass(frozen=True)
class _At:
    """A summed loss and its gradient, on the scale of the training set."""

    loss: float
    gradient: Checkpoint


@dataclass(frozen=True)
class _Comparison:
    """A merged model and the experts; see the head of this module."""

    gradient_mismatch: float
    joint_gradient: float
    increases: tuple[float, ...]
    predicted: float
    losses: float

    @property
    def loss_increase(self) -> float:
        return math.fsum(self.increases)

    @property
    def fidelity(self) -> float | None:
        return self.loss_increase / self.predicted if abs(self.predicted) > _NEGLIGIBLE * self.losses else None

    @property
    def fails(self) -> bool:
        """Whether the losses grow by much more than the quadratic model says."""
        grown = self.loss_increase
        return grown > _NEGLIGIBLE * self.losses and grown > _WORST_FIDELITY * max(self.predicted, 0.0)


def _check(plan: MergePlan, data: Sequence[str]) -> None:
    if len(data) != plan.n:
        raise RecipeError(
            f"--data is given {len(data)} times, the recipe has {plan.n} models",
            hint="give the data of each model, in the order of the recipe",
        )
    by_role = {each.role: each.label for each in plan.inputs}
    merged = [by_role[f"model {i}"] for i, prior in enumerate(plan.posteriors) if prior is not None]
    if merged:
        raise RecipeError(
            f"{merged[0]} is itself a merge, so it has no data set of its own to measure on",
            hint="use a recipe that merges all models at once",
        )


def _probe_experts(
    plan: MergePlan,
    models: Sequence[Checkpoint],
    data: Sequence[str],
    settings: FisherSettings,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[list[Probe], list[_At]]:
    """Encode each model's data as the model has it, and measure loss and gradient there."""
    probes: list[Probe] = []
    own: list[_At] = []
    for i, (model, name) in enumerate(zip(models, data, strict=True)):
        say(f"{model.label} on {name}")
        loaded = load_for(model, settings)
        source = replace(settings.source, name=name)
        probe = make_probe(loaded, replace(settings, model=model.label, source=source))
        scale, out = plan.scales[i] / probe.examples, folder / f"own-{i}"
        loss = write_gradient(loaded, model, probe, out, scale=scale)
        probes.append(probe)
        own.append(_At(loss, open_checkpoint(out)))
    return probes, own


def _scales(plan: MergePlan, probes: Sequence[Probe]) -> list[float]:
    """Return what brings sums over the examples to sums over the training sets."""
    return [scale / probe.examples for scale, probe in zip(plan.scales, probes, strict=True)]


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


def _compare(
    plan: MergePlan,
    merged: Checkpoint,
    models: Sequence[Checkpoint],
    own: Sequence[_At],
    at: Sequence[_At],
    prior_precision: float,
) -> _Comparison:
    by_role = {each.role: each.checkpoint for each in plan.inputs}
    base, base_fisher = by_role["base"], by_role.get("base fisher")
    fishers = [by_role[f"fisher {i}"] for i in range(plan.n)]
    gradients = [each.gradient for each in (*own, *at)]
    everything = [merged, *models, base, *fishers, *gradients, *([base_fisher] if base_fisher is not None else [])]
    mismatch, joint, predicted = 0.0, 0.0, []
    with Reader(file for checkpoint in everything for file in checkpoint.files) as reader:

        def read(checkpoint: Checkpoint, name: str) -> Tensor | None:
            stored = checkpoint.find(name)
            return None if stored is None else read_tensor(reader, stored).double()

        for task in plan.merged:
            name = task.place.name
            weights: Sequence[float] = getattr(task.params, "weight", (1.0,) * plan.n)
            here = [_wanted(read(each.gradient, name), name) for each in own]
            there = [_wanted(read(each.gradient, name), name) for each in at]
            curvature = torch.full_like(here[0], prior_precision)
            if base_fisher is not None:
                curvature += plan.base_scale * _wanted(read(base_fisher, name), name)
            step = _wanted(read(merged, name), name) - _wanted(read(base, name), name)
            zero = torch.zeros_like(curvature)
            gap = sum((w * (t - h) for w, h, t in zip(weights, here, there, strict=True)), zero)
            slope = sum(w * t for w, t in zip(weights, there, strict=True)) + curvature * step
            mismatch += squared_norm(gap, curvature)
            joint += squared_norm(slope, curvature)
        for i, expert in enumerate(own):
            for name in expert.gradient.tensors:
                ends = read(merged, name), read(models[i], name)
                if ends[0] is None or ends[1] is None or ends[0].shape != ends[1].shape:
                    continue
                delta, fisher = ends[0] - ends[1], read(fishers[i], name)
                bend = 0.0 if fisher is None else 0.5 * plan.scales[i] * float((fisher * delta.square()).sum())
                predicted.append(float((_wanted(read(expert.gradient, name), name) * delta).sum()) + bend)
    increases = tuple(there.loss - here.loss for here, there in zip(own, at, strict=True))
    losses = math.fsum(each.loss for each in own)
    return _Comparison(math.sqrt(mismatch), math.sqrt(joint), increases, math.fsum(predicted), losses)


def _wanted(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise RecipeError(f"'{name}' is merged, but it is no parameter whose gradient could be measured")
    return values


def _warnings(plan: MergePlan, found: dict[str, _Comparison]) -> Iterator[str]:
    ours = found["gradient_matching"]
    if not ours.fails:
        return
    first = next(iter(plan.merged), None)
    weights: Sequence[float] = getattr(first.params if first else None, "weight", (1.0,) * plan.n)
    added = [i for i, weight in enumerate(weights) if weight > 0]
    said = f"fidelity {ours.fidelity:.2g}" if ours.fidelity is not None and ours.fidelity > 0 else "it promised none"
    advice = "use weights closer to zero"
    if added:
        best = min(found, key=lambda scheme: math.fsum(found[scheme].increases[i] for i in added))
        advice = f"lower the weights towards {1 / plan.n:.2g}, set box: true"
        advice += f", or use {best}, which raises the losses least here" if best != "gradient_matching" else ""
    yield (
        f"the losses at the merged model grow by {ours.loss_increase:.4g}, far more than the quadratic model behind "
        f"gradient matching says ({said}; near 1 is good, above {_WORST_FIDELITY:g} is bad): {advice}"
    )
