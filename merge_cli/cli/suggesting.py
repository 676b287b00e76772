"""Recipe suggested for given checkpoints: base, method and exclusions, with the reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merge_cli.checkpoint import Reader, locate, open_checkpoint
from merge_cli.cli.example_recipe import example_parameters
from merge_cli.errors import CheckpointError, MergeError, RecipeError
from merge_cli.methods import find_method
from merge_cli.methods.contract import is_per_model, must_be_given
from merge_cli.plan import MergePlan, build_plan
from merge_cli.recipe import parse_recipe
from merge_cli.stream.sample import take_sample

# Rounds of exclusions: tensors that differ in shape, then heads whose labels do.
_MOST_ROUNDS = 4
# Fine-tunes lie further from each other than from their base; by this factor at least, else it is not told.
_CLEARLY = 0.98


@dataclass(frozen=True)
class _Base:
    """The base, None where none was found, and the reason in a sentence."""

    name: str | None
    why: str


def suggest_recipe(given: Sequence[str], base: str | None, method: str | None, start: Path) -> str:
    """Return the text of a recipe for checkpoints.

    Args:
        given: Their names as the recipe will have them, each once.
        base: The base among them, None to find it.
        method: The method, None to choose one.
        start: The recipe's folder.

    Raises:
        RecipeError: If there is one checkpoint only.
        CheckpointError: If they do not belong together.
    """
    if len(given) < 2:
        raise RecipeError("expected two checkpoints at least, the base among them", hint="merge-cli init BASE MODEL...")
    found = _Base(base, "as --base says") if base else _find_base(given, start)
    models = [each for each in given if each != found.name]
    fishers = _fishers(given, start)
    name, why = (method, "as --method says") if method else _choose(found, models, fishers)
    head = [f"merge_method: {_scalar(name)}  # {why}"]
    if found.name is not None:
        head.append(f"base_model: {_scalar(found.name)}  # {found.why}")
    else:
        head.insert(0, f"# {found.why}; name it with --base.")
    if name == "gradient_matching" and found.name in fishers:
        head.append(f"base_fisher: {_scalar(fishers[found.name])}")
    head.append("models:")
    head += _entries(name, models, fishers)
    if shared := example_parameters(name)[1]:
        head.append(f"parameters: {{{', '.join(f'{key}: {json.dumps(value)}' for key, value in shared.items())}}}")
    first = open_checkpoint(locate(found.name or models[0], (start,)))
    sizes: Counter[str] = Counter()
    for tensor in first.tensors.values():
        if tensor.dtype.is_float:
            sizes[tensor.dtype.torch_name] += tensor.nbytes
    if sizes:
        head.append(f"dtype: {sizes.most_common(1)[0][0]}  # of the output, that of {first.root.name}")
    text = "\n".join(head) + "\n"
    return _with_exclusions(text, start)[0]


def _choose(base: _Base, models: Sequence[str], fishers: Mapping[str, str]) -> tuple[str, str]:
    if base.name is None:
        return "linear", "the average, which needs no base"
    if fishers.keys() >= {base.name, *models}:
        return "gradient_matching", "every checkpoint has its Fisher"
    if len(models) > 2:
        return "ties", "three or more models conflict in signs, which it settles"
    return "task_arithmetic", "the simplest that uses the base; `merge-cli methods` lists others"


def _entries(method: str, models: Sequence[str], fishers: Mapping[str, str]) -> list[str]:
    parameters = _parameters(method, len(models))
    lines = []
    for model in models:
        lines.append(f"  - model: {_scalar(model)}")
        if method in ("fisher", "gradient_matching") and model in fishers:
            lines.append(f"    fisher: {_scalar(fishers[model])}")
        if parameters is not None:
            lines.append(f"    parameters: {parameters}")
    return lines


def _parameters(method: str, count: int) -> str | None:
    """Return what to give each model, in the flow style of YAML; None where a method needs nothing of it."""
    usual = {"linear": "{weight: 1}", "ties": "{weight: 1, density: 0.2}"}.get(method)
    fields = find_method(method).params.model_fields.values()
    if usual or not any(is_per_model(field) and must_be_given(field) for field in fields):
        return usual
    examples, _ = example_parameters(method)
    if "weight" in examples:
        examples["weight"] = round(1 / count, 2)
    return f"{{{', '.join(f'{key}: {json.dumps(value)}' for key, value in examples.items())}}}"


def _fishers(given: Sequence[str], start: Path) -> dict[str, str]:
    """Return those checkpoints that have a Fisher beside them, as README and demo call it, or within."""
    found = {}
    for each in given:
        path = Path(each)
        for place in (path.with_name(f"fisher-{path.name}"), path.with_name(f"{path.name}-fisher"), path / "fisher"):
            if not (start / place).is_dir():
                continue
            try:
                kind = open_checkpoint(start / place).metadata.get("kind")
            except MergeError:
                continue
            if kind == "fisher":
                found[each] = str(place) if place.is_absolute() or str(place).startswith(".") else f"./{place}"
                break
    return found


def _find_base(given: Sequence[str], start: Path) -> _Base:
    """Find the checkpoint that lies nearer to every other one than those lie to each other."""
    if len(given) == 2:
        return _Base(None, "which of two checkpoints is the base, numbers do not tell")
    models = "\n".join(f"  - {_scalar(each)}" for each in given)
    _, plan = _with_exclusions(f"merge_method: linear\nmodels:\n{models}\nparameters: {{weight: 1}}\n", start)
    files = {file.path: file for each in plan.inputs for file in each.checkpoint.files}
    with Reader(tuple(files.values())) as reader:
        sample = take_sample(plan, reader)
    if sample is None:
        return _Base(None, "no tensor could be compared to find the base")
    count = len(given)
    squares = np.array(
        [[sum(float(((p[i] - p[j]) ** 2).sum()) for p in sample.parts) for j in range(count)] for i in range(count)]
    )
    distances = np.sqrt(squares)
    best = int(distances.sum(axis=1).argmin())
    others = [i for i in range(count) if i != best]
    if all(distances[best, i] < _CLEARLY * distances[i, j] for i in others for j in others if i != j):
        return _Base(given[best], "nearer to every model than these are to each other")
    return _Base(None, "no checkpoint lies between the others, as their base would")


def _with_exclusions(text: str, start: Path) -> tuple[str, MergePlan]:
    """Return a recipe with what must be excluded for it to be planned, and its plan."""
    full = text
    for _ in range(_MOST_ROUNDS):
        try:
            return full, build_plan(parse_recipe(full, folder=start))
        except CheckpointError as error:
            # The hint of such an error ends with all that the recipe must exclude.
            _, mark, block = (error.hint or "").partition("exclude:\n")
            wanted = f"{text}{mark}{block.rstrip()}\n"
            if not mark or wanted == full:
                raise
            full = wanted
    return full, build_plan(parse_recipe(full, folder=start))


def _scalar(text: str) -> str:
    """Write a name the way YAML reads it as text."""
    plain = text.startswith((".", "/")) and all(sign.isalnum() or sign in "./-_" for sign in text)
    return text if plain or text.isidentifier() else json.dumps(text, ensure_ascii=False)
