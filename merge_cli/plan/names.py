"""Which tensors are merged, which are copied and from where, and whether the checkpoints fit each other."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from merge_cli.checkpoint import Checkpoint, StoredTensor
from merge_cli.errors import CheckpointError, RecipeError, count_of, did_you_mean
from merge_cli.plan.inputs import Inputs
from merge_cli.recipe import Exclusion, Recipe

# Parts of the names of tensors that have a row for each entry of the vocabulary.
_VOCABULARY = ("embed", "lm_head", "wte", "shared")


@dataclass(frozen=True)
class Names:
    """The output's tensors.

    Attributes:
        merged: Names of tensors that go through the method.
        copied: Name -> the stored tensor that is copied.
        order: All names, in the order of the output.
        dropped: How many tensors the recipe leaves out.
        head_source: The one model from which excluded tensors are copied, where there is one.
        notes: What was set right, in sentences.
    """

    merged: frozenset[str]
    copied: dict[str, StoredTensor]
    order: tuple[str, ...]
    dropped: int
    head_source: Checkpoint | None
    notes: tuple[str, ...] = ()


def decide_names(recipe: Recipe, inputs: Inputs) -> Names:
    """Sort every tensor name of every checkpoint into merged, copied and dropped.

    Raises:
        RecipeError: If an exclusion matches nothing or has no source.
        CheckpointError: If names or shapes differ; all that do are listed.
    """
    parts = [*([inputs.base] if inputs.base is not None and inputs.uses_base else []), *inputs.models]
    names = dict.fromkeys(name for checkpoint in [inputs.reference, *parts] for name in checkpoint.tensors)
    exclusions = [(each, re.compile(fnmatch.translate(each.pattern)).match) for each in recipe.exclude]
    _check_patterns(recipe, names)
    merged: list[str] = []
    copied: dict[str, StoredTensor] = {}
    heads: dict[str, Checkpoint] = {}
    dropped = 0
    for name in names:
        exclusion = next((e for e, matches in exclusions if matches(name)), None)
        if exclusion is None:
            merged.append(name)
        elif exclusion.drop:
            dropped += 1
        else:
            source = _source(recipe, inputs, exclusion)
            found = source.find(name)
            if found is not None:
                copied[name] = found
                if exclusion.source is not None:
                    heads[source.label] = source
            else:
                raise _no_source(recipe, exclusion, name, source, inputs)
    _check_fit(parts, merged, inputs.base or inputs.models[0])
    copied |= {name: held for name in merged if not (held := _held(inputs.reference, name)).dtype.is_float}
    averaged = frozenset(merged) - copied.keys()
    order = tuple(name for name in names if name in copied or name in averaged)
    head = next(iter(heads.values())) if len(heads) == 1 else None
    return Names(averaged, copied, order, dropped, head)


def _source(recipe: Recipe, inputs: Inputs, exclusion: Exclusion) -> Checkpoint:
    if exclusion.source is None:
        return inputs.base or inputs.models[0]
    candidates = [*([inputs.base] if inputs.base else []), *inputs.models]
    for checkpoint in candidates:
        if _plain(checkpoint.label) == _plain(exclusion.source):
            return checkpoint
    labels = [checkpoint.label for checkpoint in candidates]
    raise RecipeError(
        f"{recipe.origin.at('exclude')}: '{exclusion.source}' is not a model of this recipe",
        hint=did_you_mean(exclusion.source, labels) or f"there are {', '.join(labels)}",
    )


def _plain(reference: str) -> str:
    """Return a reference without what only decorates a path: ``./a/`` and ``a`` are the same."""
    return reference.removeprefix("./").rstrip("/")


def _no_source(recipe: Recipe, exclusion: Exclusion, name: str, source: Checkpoint, inputs: Inputs) -> RecipeError:
    holders = [model.label for model in inputs.models if model.find(name)]
    return RecipeError(
        f"{recipe.origin.at('exclude')}: '{exclusion.pattern}' copies '{name}', which {source.label} does not have",
        hint=f"say where from, {{pattern: '{exclusion.pattern}', from: {holders[0] if holders else '...'}}}, "
        "or leave it out with drop: true",
    )


def _check_patterns(recipe: Recipe, names: Iterable[str]) -> None:
    for i, exclusion in enumerate(recipe.exclude):
        matches = re.compile(fnmatch.translate(exclusion.pattern)).match
        if not any(matches(name) for name in names):
            first_parts = dict.fromkeys(name.split(".")[0] for name in names)
            raise RecipeError(
                f"{recipe.origin.at('exclude', i)}: '{exclusion.pattern}' matches no tensor",
                hint=f"* and ? are wildcards; names begin with {', '.join(list(first_parts)[:6])}",
            )


def _held(checkpoint: Checkpoint, name: str) -> StoredTensor:
    found = checkpoint.find(name)
    assert found is not None
    return found


def _check_fit(parts: list[Checkpoint], names: list[str], donor: Checkpoint) -> None:
    """Every checkpoint must have every merged tensor, in one shape; ``donor`` is where excluded ones come from."""
    problems: list[str] = []
    wrong: list[str] = []
    for name in names:
        found = [(checkpoint, checkpoint.find(name)) for checkpoint in parts]
        lacking = [checkpoint.label for checkpoint, tensor in found if tensor is None]
        having = [(checkpoint.label, tensor) for checkpoint, tensor in found if tensor is not None]
        shapes = {(tensor.shape, tensor.dtype.is_float) for _, tensor in having}
        if lacking:
            problems.append(f"  {name} is missing in {', '.join(lacking)}")
        elif len(shapes) > 1:
            said = ", ".join(f"{_shape(tensor)} in {label}" for label, tensor in having)
            problems.append(f"  {name} is {said}")
        else:
            continue
        wrong.append(name)
    if problems:
        raise CheckpointError(
            f"the checkpoints differ in {count_of(len(problems), 'tensor')}:\n" + "\n".join(problems),
            hint=_stranger_hint(parts, names) or _exclusion_hint(names, wrong, donor),
        )


def _shape(tensor: StoredTensor) -> str:
    shape = " x ".join(map(str, tensor.shape)) or "a scalar"
    return shape if tensor.dtype.is_float else f"{shape} of {tensor.dtype.torch_name}"


def _stranger_hint(parts: list[Checkpoint], names: list[str]) -> str | None:
    """Where a checkpoint has hardly a name in common with the first one, no exclusion will mend that."""
    own = [name for name in names if parts[0].find(name) is not None]
    for part in parts[1:]:
        if 2 * sum(part.find(name) is not None for name in own) < len(own):
            return (
                f"{part.label} has less than half of the tensors of {parts[0].label}: is it of the same architecture, "
                "and saved the same way? save_pretrained of the same class gives the same names"
            )
    return None


def _exclusion_hint(names: list[str], wrong: list[str], donor: Checkpoint) -> str:
    """Suggest patterns that cover the wrong names and no others."""
    patterns = _patterns(names, wrong)
    shown = ", ".join(f"'{pattern}'" for pattern in list(patterns)[:4]) + (", ..." if len(patterns) > 4 else "")
    lacking = next((pattern for pattern, name in patterns.items() if donor.find(name) is None), None)
    if lacking is not None:
        return (
            f"leave them unmerged with `exclude: [{shown}]`; what {donor.label} does not have is copied from a model, "
            f"`{{pattern: '{lacking}', from: MODEL}}`, or left out, `{{pattern: '{lacking}', drop: true}}`"
        )
    if any(part in name and "position" not in name for name in wrong for part in _VOCABULARY):
        return (
            "the vocabularies differ, or one model has its own head; leave tensors unmerged with "
            f"`exclude: [{shown}]`, which copies them from {donor.label}"
        )
    return (
        f"leave them unmerged with `exclude: [{shown}]`, which copies them from {donor.label}; "
        "`{pattern: ..., from: MODEL}` copies from a model, `{pattern: ..., drop: true}` leaves them out"
    )


def _patterns(names: list[str], wrong: list[str]) -> dict[str, str]:
    """Return patterns, each with a name that it covers: whole modules where nothing in them fits, else single names."""
    fitting = set(names) - set(wrong)
    held = {name[: dot.start()] for name in fitting for dot in re.finditer(r"\.", name)}
    patterns: dict[str, str] = {}
    for name in wrong:
        module = name.rpartition(".")[0]
        patterns.setdefault(f"{module}.*" if module and module not in held else name, name)
    return patterns
