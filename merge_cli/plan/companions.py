"""What Fisher and gradient files say of themselves and must hold, and what a base says of how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from merge_cli.checkpoint import Checkpoint, Files
from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.methods.contract import Input, Params
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.misfits import first_few
from merge_cli.recipe import Recipe
from merge_cli.text import count_of, listed

_MANIFEST = "merge_manifest.json"
# Characters of a name in a manifest; longer ones are none.
_MOST_SHOWN = 1000
_KINDS = frozenset({"fisher", "gradient", "precision"})
# Beyond it float32 has infinity.
_MOST_PRIOR = 3e38
_WRONG_REDUCTION = {"fisher": "sum", "gradient": "mean"}


def check_kinds(inputs: Inputs) -> None:
    """Refuse a file that says of itself that it is not what the recipe takes it for; one that says nothing is taken.

    A Fisher counts as the mean over examples and is multiplied by their number, a gradient as the sum.

    Raises:
        CheckpointError: Naming the file.
    """
    for role, found in inputs.by_role():
        what = next((word for word in ("fisher", "gradient") if word in role), None)
        if what is None:
            continue
        kinds = ("fisher", "precision") if what == "fisher" else ("gradient",)
        kind, reduction = found.metadata.get("kind"), found.metadata.get("reduction")
        if kind in _KINDS and kind not in kinds:
            raise CheckpointError(f"{found.label} says of itself that it is a {kind}; the recipe names it as a {what}")
        if reduction == _WRONG_REDUCTION[what] and kind != "precision":
            other = "mean" if reduction == "sum" else "sum"
            raise CheckpointError(
                f"{found.label} holds the {reduction} over examples; a {what} file holds their {other}",
                hint=f"{'divide' if other == 'mean' else 'multiply'} it by the number of examples",
            )


def check_shapes(inputs: Inputs, merged: Iterable[str]) -> None:
    """Refuse Fishers and gradients that lack a merged tensor, or have it in another shape than the model.

    Raises:
        CheckpointError: Naming some of such tensors.
    """
    names = list(merged)
    base = [inputs.base_fisher] if inputs.base_fisher is not None else []
    for what, checkpoints in (("Fisher", [*inputs.fishers, *base]), ("gradient", inputs.gradients)):
        for checkpoint in checkpoints:
            problems = [line for name in names if (line := _misfit(checkpoint, name, inputs.reference))]
            if problems:
                raise CheckpointError(
                    f"the {what} {checkpoint.label} does not fit the models in {count_of(len(problems), 'tensor')}:\n"
                    + first_few(problems),
                    hint=f"is it the {what} of this model? leave tensors without one unmerged with `exclude:`",
                )


def _misfit(checkpoint: Checkpoint, name: str, reference: Checkpoint) -> str | None:
    tensor, wanted = checkpoint.find(name), reference.find(name)
    if tensor is None or wanted is None:
        return f"  {name} is missing"
    if tensor.shape == wanted.shape and tensor.dtype.is_float:
        return None
    return f"  {name} is {list(tensor.shape)} of {tensor.dtype.torch_name}, expected {list(wanted.shape)} of float32"


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


def fisher_scales(recipe: Recipe, inputs: Inputs, params: Params | None) -> tuple[tuple[float, ...], float]:
    """Return what each mean Fisher is multiplied with: N for the sum scale, 1 for the mean scale.

    A method that reads curvature may have the parameters ``curvature`` (sum or mean), ``examples`` and
    ``base_examples``, which override what the Fisher files say.

    Raises:
        RecipeError: If neither says how many examples a Fisher stands for.
    """
    if params is None or Input.CURVATURE not in inputs.needs or getattr(params, "curvature", "sum") == "mean":
        return (1.0,) * len(inputs.models), 1.0
    given = getattr(params, "examples", (None,) * len(inputs.models))
    scales = tuple(
        number
        if number is not None
        else 1.0
        if posterior_prior(fisher) is not None
        else _train_examples(recipe, fisher, "examples")
        for number, fisher in zip(given, inputs.fishers, strict=True)
    )
    if inputs.base_fisher is None:
        return scales, 1.0
    base = getattr(params, "base_examples", None)
    return scales, base if base is not None else _train_examples(recipe, inputs.base_fisher, "base_examples")


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
