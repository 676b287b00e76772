"""Companions of models: checks of Fisher and gradient files, and of a base that is itself a merge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from merge_cli.checkpoint import Checkpoint, Files
from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.methods.contract import COMPANIONS, Companion, CurvatureScale, Input, Method, Params, companion
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.misfits import first_few
from merge_cli.recipe import Recipe
from merge_cli.text import count_of, listed

_MANIFEST = "merge_manifest.json"
# Characters of a name in a manifest; longer ones are none.
_MOST_SHOWN = 1000
# Larger values overflow float32.
_MOST_PRIOR = 3e38
FISHER = "fisher"


def check_kinds(inputs: Inputs) -> None:
    """Refuse a file that says of itself that it is not what the recipe takes it for; one that says nothing is taken.

    A Fisher counts as the mean over examples and is multiplied by their number, a gradient as the sum.

    Raises:
        CheckpointError: Naming the file.
    """
    known = {kind for each in COMPANIONS for kind in each.accepted}
    for role, found in inputs.by_role():
        if role.is_model:
            continue
        what = companion(role.kind)
        kind, reduction = found.metadata.get("kind"), found.metadata.get("reduction")
        if kind in known and kind not in what.accepted:
            raise CheckpointError(
                f"{found.label} says of itself that it is a {kind}; the recipe names it as a {what.kind}"
            )
        other = "sum" if what.reduction == "mean" else "mean"
        if reduction == other and kind in (None, what.kind):
            raise CheckpointError(
                f"{found.label} holds the {reduction} over examples; a {what.kind} file holds their {what.reduction}",
                hint=f"{'divide' if what.reduction == 'mean' else 'multiply'} it by the number of examples",
            )


def check_shapes(inputs: Inputs, merged: Iterable[str]) -> None:
    """Refuse companions that lack a merged tensor, or have it in another shape than goes with the model's.

    Raises:
        CheckpointError: Naming some of such tensors.
    """
    names = list(merged)
    for role, checkpoint in inputs.by_role():
        what = None if role.is_model else companion(role.kind)
        problems = [line for name in names if what and (line := _misfit(what, checkpoint, name, inputs.reference))]
        if what is not None and problems:
            raise CheckpointError(
                f"the {what.title} {checkpoint.label} does not fit the models in "
                f"{count_of(len(problems), 'tensor')}:\n" + first_few(problems),
                hint=f"is it the {what.title} of this model? leave tensors without one unmerged with `exclude:`",
            )


def _misfit(what: Companion, checkpoint: Checkpoint, name: str, reference: Checkpoint) -> str | None:
    tensor, model = checkpoint.find(name), reference.find(name)
    if tensor is None or model is None:
        return f"  {name} is missing"
    expected = what.shape(model.shape)
    if tensor.shape == expected and tensor.dtype.is_float:
        return None
    return f"  {name} is {list(tensor.shape)} of {tensor.dtype.torch_name}, expected {list(expected)} of float32"


def posterior_prior(fisher: Checkpoint) -> float | None:
    """Return the prior precision within a posterior precision, or None where the file is a Fisher.

    A posterior precision, P = H_0 + δ + sum_t α_t H_t, is written by a merge with ``save_precision``. As the Fisher of
    the merged model it stands for the curvature P - H_0 - δ, so that merging further experts gives what merging all at
    once would have given (the rule is associative in P and P·θ).

    Raises:
        CheckpointError: If the file does not say which prior precision it holds.
    """
    if fisher.metadata.get("kind") != "precision":
        return None
    prior = fisher.config.get("prior_precision")
    if isinstance(prior, bool) or not isinstance(prior, (int, float)) or not 0 <= prior <= _MOST_PRIOR:
        raise CheckpointError(
            f"{fisher.label} is a posterior precision without its prior_precision",
            hint="keep the config.json that was written beside it",
        )
    return float(prior)


def fisher_scales(
    recipe: Recipe, inputs: Inputs, method: Method, params: Params | None
) -> tuple[tuple[float, ...], float]:
    """Return what each mean Fisher is multiplied with: N for the sum scale, 1 for the mean scale.

    The method says from its parameters which scale it wants, and which numbers override what the Fisher files say.

    Raises:
        RecipeError: If neither says how many examples a Fisher stands for.
    """
    n = len(inputs.models)
    wanted = method.curvature_scale(params) if params is not None else CurvatureScale(mean=True)
    fishers, base = inputs.companions.get(FISHER, ()), inputs.base_companions.get(FISHER)
    if Input.CURVATURE not in inputs.needs or wanted.mean:
        return (1.0,) * n, 1.0
    scales = tuple(
        number
        if number is not None
        else 1.0
        if posterior_prior(fisher) is not None
        else _train_examples(recipe, fisher, "examples")
        for number, fisher in zip(wanted.examples or (None,) * n, fishers, strict=True)
    )
    if base is None:
        return scales, 1.0
    given = wanted.base_examples
    return scales, given if given is not None else _train_examples(recipe, base, "base_examples")


def _train_examples(recipe: Recipe, fisher: Checkpoint, parameter: str) -> float:
    text = fisher.metadata.get("train_examples") or fisher.metadata.get("examples")
    try:
        number = float(text or "")
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise RecipeError(
            f"{recipe.origin.at('parameters')}: {fisher.label} does not say for how many training examples it stands",
            hint=f"give `{parameter}: N`, or count all data sets alike with `curvature: mean`",
        )
    return number


def stale_expert_warnings(inputs: Inputs) -> Iterator[str]:
    """Warn where task vectors are taken against a base that is itself a merge.

    A task vector is the way from the model that the fine-tuning started from. Taken against a merged model, an expert
    that started from the original base brings the others' changes along with the opposite sign.
    """
    if inputs.base is None or not inputs.uses_base:
        return
    try:
        made = read_json(inputs.base.root / _MANIFEST, Files())
        original = next(each["reference"] for each in made["inputs"] if each["role"] == "base")
        method = made["method"]["name"]
    except (CheckpointError, KeyError, TypeError, StopIteration):
        return
    if not all(isinstance(each, str) and len(each) <= _MOST_SHOWN for each in (original, method)):
        return
    experts = listed([model.label for model in inputs.models], most=3)
    remedy = ""
    if Input.CURVATURE in inputs.needs:
        remedy = (
            f", and {inputs.base.label} as a model with fisher: {inputs.base.label}/precision (save_precision: true)"
        )
    yield (
        f"the base {inputs.base.label} is itself a merge ({method} onto {original}). That is right for experts which "
        f"were fine-tuned from it; if {experts} started from {original}, use base_model: {original}{remedy}"
    )
