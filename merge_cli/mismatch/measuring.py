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
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from merge_cli.checkpoint import Checkpoint, open_checkpoint
from merge_cli.errors import RecipeError
from merge_cli.fisher import Columns, FisherSettings, Probe, load_for, make_probe, write_gradient
from merge_cli.fisher.hf_model import Loaded
from merge_cli.methods.contract.prospects import less_far
from merge_cli.methods.gradient_matching import GradientMatchingParams
from merge_cli.mismatch.comparing import WORST_FIDELITY, At, Comparison, compare
from merge_cli.mismatch.ways import merged_for
from merge_cli.plan import MergePlan
from merge_cli.plan.roles import MODEL, Role
from merge_cli.report.mismatch import SCHEMES

# Behind a data set's name: the columns of this one, as in ``rows.csv:text=sentence,label=category``.
_COLUMNS = re.compile(r"(?P<name>.+?):(?P<columns>(?:text|label|image)=[^,=]+(?:,(?:text|label|image)=[^,=]+)*)")


@dataclass(frozen=True)
class MeasuredMismatch:
    """Measurements on data.

    Attributes:
        values: Quantity (``gradient mismatch``, ``joint gradient``, ``loss increase``, ``fidelity``) -> scheme ->
            number; None where a fidelity has no meaning, because the quadratic model says that no loss changes.
        losses: Data set -> scheme, or ``alone`` for the model that was trained on it -> mean loss of an example, in
            nats.
        warnings: What predicts failure, in plain words.
    """

    values: dict[str, dict[str, float | None]]
    losses: dict[str, dict[str, float]]
    warnings: tuple[str, ...]


def measure_mismatch(
    plan: MergePlan,
    data: Sequence[str],
    settings: FisherSettings,
    *,
    prior_precision: float,
    say: Callable[[str], None] = lambda text: None,
) -> MeasuredMismatch:
    """Merge by each scheme into a temporary folder and measure there, with the true labels of all data sets.

    Args:
        plan: A plan of gradient_matching.
        data: The data set of each model, in order; its columns may stand behind it, as in ``a.csv:text=x,label=y``.
        settings: How to read the data and run the models; model and source are replaced by each of them in turn.
        prior_precision: δ, as gradient matching has resolved it.
        say: Is told what is being done.

    Raises:
        RecipeError: If there is not one data set per model, or a model is a merged one, whose data are several.
        CheckpointError: If a model or data set cannot be used.
    """
    _check(plan, data)
    models = [plan.by_role[Role(MODEL, i)] for i in range(plan.n)]
    with tempfile.TemporaryDirectory(prefix="merge-cli-") as scratch:
        folder = Path(scratch)
        probes, own = _probe_experts(plan, models, data, settings, folder, say)
        names = [name if data.count(name) == 1 else f"{name} ({models[i].label})" for i, name in enumerate(data)]
        found: dict[str, Comparison] = {}
        losses: dict[str, dict[str, float]] = {}
        for scheme in SCHEMES:
            say(f"{scheme} on all data")
            there = folder / scheme
            at = []
            for i, (probe, scale) in enumerate(zip(probes, _scales(plan, probes), strict=True)):
                merged = merged_for(plan, models, i, scheme, there)
                at.append(_measure_at(load_for(merged, settings), merged, probe, scale, there / str(i)))
            found[scheme] = compare(plan, own, at, prior_precision)
            for i, name in enumerate(names):
                losses.setdefault(name, {"alone": own[i].loss / plan.scales[i]})[scheme] = at[i].loss / plan.scales[i]
            shutil.rmtree(there)
    values = {
        what: {scheme: getattr(each, what.replace(" ", "_")) for scheme, each in found.items()}
        for what in ("gradient mismatch", "joint gradient", "loss increase", "fidelity")
    }
    return MeasuredMismatch(values, losses, tuple(_warnings(plan, found)))


def columns_of(data: str, otherwise: Columns) -> tuple[str, Columns]:
    """Take apart what was said of a data set: its name, and the columns that stand behind it, if any."""
    said = _COLUMNS.fullmatch(data)
    if said is None or Path(data).exists():
        return data, otherwise
    named: dict[str, list[str]] = {}
    for kind, column in (each.split("=", 1) for each in said["columns"].split(",")):
        named.setdefault(kind, []).append(column)
    if any(len(columns) > 1 for kind, columns in named.items() if kind != "text"):
        raise RecipeError(f"--data {data}: only text columns may be named twice, for a pair")
    one = {kind: columns[0] for kind, columns in named.items() if kind != "text"}
    return said["name"], replace(otherwise, text=tuple(named.get("text", otherwise.texts)), **one)


def _check(plan: MergePlan, data: Sequence[str]) -> None:
    if len(data) != plan.n:
        raise RecipeError(
            f"--data is given {len(data)} times, the recipe has {plan.n} models",
            hint="give the data of each model, in the order of the recipe",
        )
    merged = [label for label, prior in zip(plan.labels, plan.posteriors, strict=False) if prior is not None]
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
) -> tuple[list[Probe], list[At]]:
    """Encode each model's data as the model has it, and measure loss and gradient there."""
    probes: list[Probe] = []
    own: list[At] = []
    for i, (model, said) in enumerate(zip(models, data, strict=True)):
        say(f"{model.label} on {said}")
        loaded = load_for(model, settings)
        name, columns = columns_of(said, settings.columns)
        source = replace(settings.source, name=name)
        probe = make_probe(loaded, replace(settings, model=model.label, source=source, columns=columns))
        probes.append(probe)
        own.append(_measure_at(loaded, model, probe, plan.scales[i] / probe.examples, folder / f"own-{i}"))
        del loaded
    return probes, own


def _measure_at(loaded: Loaded, model: Checkpoint, probe: Probe, scale: float, out: Path) -> At:
    loss = write_gradient(loaded, model, probe, out, scale=scale)
    return At(loss, open_checkpoint(out), model)


def _scales(plan: MergePlan, probes: Sequence[Probe]) -> list[float]:
    """Return what brings sums over the examples to sums over the training sets."""
    return [scale / probe.examples for scale, probe in zip(plan.scales, probes, strict=True)]


def _warnings(plan: MergePlan, found: dict[str, Comparison]) -> Iterator[str]:
    ours = found["gradient_matching"]
    if not ours.fails:
        return
    first = next(iter(plan.merged), None)
    params = first.params if first is not None else None
    assert isinstance(params, GradientMatchingParams)
    weights = params.weight
    added = [i for i, weight in enumerate(weights) if weight > 0]
    said = f"fidelity {ours.fidelity:.2g}" if ours.fidelity is not None and ours.fidelity > 0 else "it promised none"
    advice = less_far(weights, anchor=params.anchor, box=params.box)
    if added:
        best = min(found, key=lambda scheme: math.fsum(found[scheme].increases[i] for i in added))
        advice += () if best == "gradient_matching" else (f"or use {best}, which raises the losses least here",)
    yield (
        f"the losses at the merged model grow by {ours.loss_increase:.4g}, far more than the quadratic model behind "
        f"gradient matching says ({said}; near 1 is good, above {WORST_FIDELITY:g} is bad): {', '.join(advice)}"
    )
