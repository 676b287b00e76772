"""Overrides of single values of a recipe, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merge_cli.errors import RecipeError
from merge_cli.recipe.yaml_document import parse_yaml


def apply_override(data: dict[str, Any], override: str) -> None:
    """Change one value of a recipe's data in place.

    Args:
        data: What the YAML holds.
        override: ``place=value``; places in lists are numbered from 0, mappings on the way are made.

    Raises:
        RecipeError: If it is not of that form, or there is no such place.
    """
    place, equals, text = override.partition("=")
    if not equals or not all(place.split(".")):
        raise RecipeError(f"--set {override}: expected place=value, such as models.0.parameters.weight=0.3")
    try:
        value = parse_yaml(text, "the value").data
    except RecipeError as error:
        raise RecipeError(f"--set {override}: '{text}' is not a YAML value") from error
    *parents, last = place.split(".")
    at: Any = data
    for key in parents:
        at = _child(at, key, override)
    if isinstance(at, list):
        at[_position(at, last, override)] = value
    else:
        at[last] = value


def text_with(text: str, name: str, overrides: Sequence[str]) -> str:
    """Return a recipe's text with values changed; without any it stays as it is, comments and all."""
    if not overrides:
        return text
    data = parse_yaml(text, name).data
    for override in overrides:
        apply_override(data, override)
    import yaml

    changed: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return changed


def _child(at: Any, key: str, override: str) -> Any:
    if isinstance(at, list):
        found = at[_position(at, key, override)]
    else:
        found = at.get(key)
        if found is None:
            found = at[key] = {}
    if not isinstance(found, (dict, list)):
        raise RecipeError(f"--set {override}: '{key}' is a single value; there is nothing inside it")
    return found


def _position(items: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or len(key) > 9 or int(key) >= len(items):
        raise RecipeError(f"--set {override}: '{key}' is not a position in a list of {len(items)}, 0 first")
    return int(key)
