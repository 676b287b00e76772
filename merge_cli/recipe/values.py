"""A parameter's value in a recipe: one number, a list over the layers, or a choice by tensor name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

Scalar = float | bool | str
Gradient = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The first case whose filter is part of the tensor's name; a filter of None matches every name."""

    cases: tuple[tuple[str | None, Scalar | Gradient], ...]


def parse_value(raw: Any) -> Scalar | Gradient | Choice:
    """Read a value as YAML gives it.

    Raises:
        ValueError: If it is none of the three forms.
    """
    if isinstance(raw, (Choice, tuple)):
        return raw
    if isinstance(raw, dict):
        return Choice((_case(raw),))
    if isinstance(raw, list):
        if not raw:
            raise ValueError("the list is empty; expected numbers, or entries with filter and value")
        if all(isinstance(item, dict) for item in raw):
            return Choice(tuple(_case(item) for item in raw))
        return tuple(_number(item) for item in raw)
    return _scalar(raw)


def _case(raw: dict[str, Any]) -> tuple[str | None, Scalar | Gradient]:
    if "value" not in raw or not set(raw) <= {"filter", "value"}:
        raise ValueError(f"expected an entry with filter and value, got {list(raw)}")
    value = parse_value(raw["value"])
    if isinstance(value, Choice):
        raise ValueError("a filter's value is a number or a list of numbers, not another choice")
    name = raw.get("filter")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"filter is part of a tensor's name, got {name!r}")
    return (None if name in (None, "*") else name), value


def _scalar(raw: Any) -> Scalar:
    if isinstance(raw, str):
        try:
            return _number(raw)
        except ValueError:
            return raw
    return raw if isinstance(raw, bool) else _number(raw)


def _number(raw: Any) -> float:
    # YAML 1.1 reads 1e-8, which has no point, as text.
    if isinstance(raw, (int, float, str)):
        try:
            number = float(raw)
        except ValueError:
            raise ValueError(f"expected a number, got '{raw}'") from None
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise ValueError(f"expected a finite number, got {str(raw)[:40]}")


def plain_value(value: Scalar | Gradient | Choice) -> Any:
    """Return a value as YAML gives it; the inverse of :func:`parse_value`."""
    if isinstance(value, Choice):
        return [
            {"value": plain_value(case)} if part is None else {"filter": part, "value": plain_value(case)}
            for part, case in value.cases
        ]
    return list(value) if isinstance(value, tuple) else value


def resolve(value: Scalar | Gradient | Choice, name: str, t: float) -> Scalar | None:
    """Return what a value means for one tensor.

    Args:
        value: The value.
        name: The tensor's name, for filters.
        t: The tensor's position among the layers in [0, 1]; 0 for tensors outside of them.

    Returns:
        A scalar; None where no filter matches, so that the next place is asked.
    """
    if isinstance(value, Choice):
        for part, case in value.cases:
            if part is None or part in name:
                return resolve(case, name, t)
        return None
    if isinstance(value, tuple):
        return _interpolate(value, t)
    return value


def _interpolate(points: Gradient, t: float) -> float:
    """Interpolate linearly between evenly spaced points, the first at t = 0 and the last at t = 1."""
    x = t * (len(points) - 1)
    left = min(math.floor(x), len(points) - 1)
    right = min(left + 1, len(points) - 1)
    return points[left] + (x - left) * (points[right] - points[left])


_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_PLAIN = {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "string"}, _NUMBERS]}
_CASE = {
    "type": "object",
    "properties": {"filter": {"type": "string"}, "value": _PLAIN},
    "required": ["value"],
    "additionalProperties": False,
}
VALUE_SCHEMA: dict[str, Any] = {"anyOf": [*_PLAIN["anyOf"], {"type": "array", "items": _CASE, "minItems": 1}, _CASE]}

Value = Annotated[
    Scalar | Gradient | Choice,
    BeforeValidator(parse_value),
    PlainSerializer(plain_value),
    WithJsonSchema(VALUE_SCHEMA),
]
