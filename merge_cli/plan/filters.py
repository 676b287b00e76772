"""Checks of a recipe's filters against the names of the merged tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from merge_cli.methods.contract import Params, is_per_model
from merge_cli.plan.model import TensorTask
from merge_cli.recipe import Choice, ModelEntry, Recipe
from merge_cli.text import count_of, did_you_mean, listed

_Place = tuple[str | int, ...]


def filter_warnings(recipe: Recipe, names: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each filter that no merged tensor's name has in it."""
    for place, choice in _choices(recipe):
        for part, _ in choice.cases:
            if part is not None and not any(part in name for name in names):
                known = dict.fromkeys(word for name in names for word in name.split(".") if not word.isdecimal())
                guess = did_you_mean(part, known)
                yield (
                    f"{recipe.origin.at(*place)}: filter '{part}' is in the name of no tensor that is merged"
                    f"{'; ' + guess if guess else ''}"
                )


def filter_notes(recipe: Recipe, merged: Sequence[TensorTask], entries: Sequence[ModelEntry]) -> Iterator[str]:
    """Yield a sentence for each list of filters without a default, on the value that other tensors get."""
    for place, choice in _choices(recipe):
        if any(part is None for part, _ in choice.cases):
            continue
        rest = [task for task in merged if not any(part in task.target.name for part, _ in choice.cases if part)]
        if not rest:
            continue
        values = dict.fromkeys(str(_value(task.params, place, recipe, entries)) for task in rest)
        yield (
            f"{recipe.origin.at(*place)}: no filter matches {count_of(len(rest), 'tensor')}, such as "
            f"{rest[0].target.name}; there it is {listed(values, most=3)}"
        )


def _choices(recipe: Recipe) -> Iterator[tuple[_Place, Choice]]:
    places: list[tuple[_Place, Any]] = [(("parameters", key), value) for key, value in recipe.parameters.items()]
    for i, entry in enumerate(recipe.models):
        places += [(("models", i, "parameters", key), value) for key, value in entry.parameters.items()]
    yield from ((place, value) for place, value in places if isinstance(value, Choice))


def _value(params: Params | None, place: _Place, recipe: Recipe, entries: Sequence[ModelEntry]) -> Any:
    """Return what a parameter is for one tensor."""
    key = place[-1]
    for name, field in type(params).model_fields.items() if params is not None else ():
        if key not in (name, field.alias):
            continue
        value = getattr(params, name)
        if not is_per_model(field) or place[0] != "models":
            return value[0] if is_per_model(field) else value
        assert isinstance(place[1], int)
        entry = recipe.models[place[1]]
        return value[entries.index(entry)] if entry in entries else None
    return None
