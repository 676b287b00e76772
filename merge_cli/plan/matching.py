"""Matching of the checkpoints' tensors: merged, copied or dropped."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from merge_cli.checkpoint import Checkpoint, Source
from merge_cli.checkpoint.wrappers import plain_pattern
from merge_cli.errors import RecipeError
from merge_cli.plan.buffers import lacking_computed, left_out_note, statistics_note
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.misfits import check_filled, check_fit
from merge_cli.recipe import Exclusion, Recipe
from merge_cli.text import did_you_mean

# Integers that mean nothing to the weights: where they differ, those of the base are as good as any.
_HARMLESS = ("num_batches_tracked", "position_ids", "token_type_ids")


@dataclass(frozen=True)
class TensorMatch:
    """The output's tensors.

    Attributes:
        merged: Names of tensors that go through the method.
        copied: Name -> the stored tensor that is copied.
        order: All names, in the order of the output.
        dropped: How many tensors the recipe leaves out.
        head_source: The one model from which excluded tensors are copied, where there is one.
        twins: Name of a tensor that is copied as no arithmetic makes sense on it -> the same tensor in the models.
        notes: What was set right, in sentences.
        warnings: What is odd about the tensors, in sentences.
    """

    merged: frozenset[str]
    copied: dict[str, Source]
    order: tuple[str, ...]
    dropped: int
    head_source: Checkpoint | None
    twins: Mapping[str, tuple[Source, ...]]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def match_tensors(recipe: Recipe, inputs: Inputs) -> TensorMatch:
    """Sort every tensor name of every checkpoint into merged, copied and dropped.

    Raises:
        RecipeError: If an exclusion matches nothing or has no source.
        CheckpointError: If names or shapes differ, or tensors are empty that should not be.
    """
    parts = [*([inputs.base] if inputs.base is not None and inputs.uses_base else []), *inputs.models]
    names = dict.fromkeys(name for checkpoint in [inputs.reference, *parts] for name in checkpoint.tensors)
    fates = _fates(recipe, inputs, names, parts)
    merged, copied = fates.merged, fates.copied
    check_fit(parts, merged, inputs.base or inputs.models[0], recipe.exclude)
    plain = {name: held for name in merged if not (held := _held(inputs.reference, name)).dtype.is_float}
    twins = {name: tuple(_held(model, name) for model in parts) for name in plain if not name.endswith(_HARMLESS)}
    copied |= plain
    averaged = frozenset(merged) - copied.keys()
    order = tuple(name for name in names if name in copied or name in averaged)
    empty = check_filled(order, lambda name: copied.get(name) or _held(inputs.reference, name))
    head = next(iter(fates.heads.values())) if len(fates.heads) == 1 else None
    notes = (*left_out_note(fates.computed, names), *statistics_note(averaged))
    return TensorMatch(averaged, copied, order, fates.dropped, head, twins, notes, empty)


@dataclass
class _Fates:
    """The fate of each name: ``heads`` are the models that tensors are copied from as the recipe says."""

    merged: list[str] = field(default_factory=list)
    copied: dict[str, Source] = field(default_factory=dict)
    heads: dict[str, Checkpoint] = field(default_factory=dict)
    computed: dict[str, list[str]] = field(default_factory=dict)
    dropped: int = 0


def _fates(recipe: Recipe, inputs: Inputs, names: Collection[str], parts: Sequence[Checkpoint]) -> _Fates:
    exclusions = list(_exclusions(recipe, names))
    fates = _Fates()
    for name in names:
        exclusion = next((e for e, matches in exclusions if matches(name)), None)
        if exclusion is None:
            if lacking := lacking_computed(name, parts):
                fates.computed[name] = lacking
            else:
                fates.merged.append(name)
        elif exclusion.drop:
            fates.dropped += 1
        else:
            source = _source(recipe, inputs, exclusion)
            found = source.find(name)
            if found is None:
                raise _no_source(recipe, exclusion, name, source, inputs)
            fates.copied[name] = found
            if exclusion.source is not None:
                fates.heads[source.label] = source
    return fates


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
    candidates = [*inputs.models, *([inputs.base] if inputs.base else [])]
    holder = next(each.label for each in candidates if each.find(name))
    return RecipeError(
        f"{recipe.origin.at('exclude')}: '{exclusion.pattern}' copies '{name}', which {source.label} does not have",
        hint=f"say where from, {{pattern: '{exclusion.pattern}', from: {holder}}}, or leave it out with drop: true",
    )


def _exclusions(
    recipe: Recipe, names: Collection[str]
) -> Iterator[tuple[Exclusion, Callable[[str], re.Match[str] | None]]]:
    """Yield each exclusion and what tells whether it is for a name; its pattern may be one for names in a wrapper."""
    for i, exclusion in enumerate(recipe.exclude):
        for pattern in dict.fromkeys((exclusion.pattern, plain_pattern(exclusion.pattern))):
            matches = re.compile(fnmatch.translate(pattern)).match
            if any(matches(name) for name in names):
                yield exclusion, matches
                break
        else:
            first_parts = dict.fromkeys(name.split(".")[0] for name in names)
            raise RecipeError(
                f"{recipe.origin.at('exclude', i)}: '{exclusion.pattern}' matches no tensor",
                hint=f"* and ? are wildcards; names begin with {', '.join(list(first_parts)[:6])}",
            )


def _held(checkpoint: Checkpoint, name: str) -> Source:
    found = checkpoint.find(name)
    assert found is not None
    return found
