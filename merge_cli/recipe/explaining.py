"""Translation of pydantic's findings into errors on a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from merge_cli.errors import RecipeError
from merge_cli.recipe.schema import Exclusion, ModelEntry, Origin, Recipe
from merge_cli.text import count_of, did_you_mean

# What is wrong beyond these is counted.
_MOST_FINDINGS = 20
_MOST_SHOWN = 40
# Kind of finding -> what was expected, with the bound that pydantic tells.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_type": "a mapping",
    "string_type": "text",
    "too_short": "a list of at least one",
    "tuple_type": "a list",
}


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the keys that a part of a recipe may have."""
    return [field.alias or name for name, field in model.model_fields.items()]


def joined(lines: list[str]) -> str:
    """Join findings, one on each line; only the first of very many."""
    more = [f"and {count_of(len(lines) - _MOST_FINDINGS, 'finding')} more"] if len(lines) > _MOST_FINDINGS else []
    return "\n".join([*lines[:_MOST_FINDINGS], *more])


def said_of(finding: Mapping[str, Any]) -> str:
    """Say what one finding of pydantic means: ``expected a number, got 'big'``."""
    kind, given = finding["type"], finding["input"]
    if kind == "missing":
        return "is missing"
    if kind not in _EXPECTED:
        return str(finding["msg"]).removeprefix("Value error, ")
    wanted = _EXPECTED[kind].format_map({name: _number(bound) for name, bound in finding.get("ctx", {}).items()})
    return f"expected {wanted}, got {_shown(given)}"


def _number(bound: Any) -> Any:
    return f"{bound:g}" if isinstance(bound, float) else bound


def _shown(given: Any) -> str:
    if given is None:
        return "nothing"
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, (int, float)):
        return str(given)[:_MOST_SHOWN]
    return repr(str(given)[:_MOST_SHOWN])


def explained(error: ValidationError, origin: Origin, parameters: frozenset[str]) -> RecipeError:
    """Turn pydantic's findings into one error, each finding on a line with its place.

    Args:
        error: What pydantic found.
        origin: Where the recipe came from.
        parameters: All parameters of all methods: one that stands beside ``model:`` belongs a level deeper.
    """
    lines: list[str] = []
    known: list[str] = []
    findings = error.errors()
    for finding in findings:
        place = tuple(part for part in finding["loc"] if isinstance(part, int) or not part.startswith("function-"))
        # A list whose items are wrong is also said to be too short, for want of items that are right.
        if finding["type"] == "too_short" and any(
            other["loc"][: len(finding["loc"])] == finding["loc"] for other in findings if other != finding
        ):
            continue
        what = said_of(finding)
        if finding["type"] == "extra_forbidden":
            parts: dict[str, type[BaseModel]] = {"models": ModelEntry, "exclude": Exclusion}
            known = keys_of(parts.get(str(place[0]), Recipe) if len(place) > 1 else Recipe)
            guess = _guess(place, finding["input"], known, parameters)
            what = f"there is no such key here{'; ' + guess if guess else ''}"
        lines.append(f"{origin.at(*place)}: {what}")
    return RecipeError(joined(lines), hint=f"known keys: {', '.join(known)}" if known else None)


def _guess(place: tuple[int | str, ...], given: Any, known: list[str], parameters: frozenset[str]) -> str | None:
    """Say where an unknown key belongs, or what it may be a slip of the pen for."""
    key = str(place[-1])
    if key in parameters and (len(place) == 1 or place[0] == "models"):
        value = _shown(given) if isinstance(given, (int, float)) else "..."
        return f"did you mean `parameters: {{{key}: {value}}}`?"
    return did_you_mean(key, known)
