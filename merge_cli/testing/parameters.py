"""Parameters of methods and steps, made from what their fields say of themselves."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal, Union

import annotated_types
from hypothesis import reject
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from merge_cli.methods.contract import Params, field_default, field_examples, is_per_model
from merge_cli.testing.rules import RuleBroken


def params_for(kind: type[Params], n: int, **values: Any) -> Params:
    """Return parameters for n models: the values given, the rest at their defaults."""
    for name, field in kind.model_fields.items():
        if is_per_model(field) and name not in values:
            default = field_default(field)
            if default is not None or type(None) in typing.get_args(_element(field)):
                values[name] = (default,) * n
    return kind(**values)


def typical_params(kind: type[Params], n: int) -> list[Params]:
    """Return parameters with which everything is switched on, and beside them what else the fields can hold.

    The first has the first example of each field that names examples, and else the default. Each of the others has one
    other value: a further example, or of a field with few values another of them.

    Raises:
        RuleBroken: If a field has neither default nor example, or the examples are refused.
    """
    values = {
        name: _repeated(field, n, examples[0])
        for name, field in kind.model_fields.items()
        if (examples := field_examples(field))
    }
    try:
        typical = params_for(kind, n, **values)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or kind.__name__
        raise RuleBroken(
            f"{kind.__name__} refuses its own examples and defaults: {place}: {error.errors()[0]['msg']}",
            hint="give the field `examples=[...]`, or per_model(..., example=...), of a value that switches it on",
        ) from error
    others = []
    for name, field in kind.model_fields.items():
        choices = field_examples(field) + ([] if is_per_model(field) else _choices(field.annotation))
        for choice in choices:
            if _repeated(field, n, choice) != getattr(typical, name):
                others.append(params_for(kind, n, **{**values, name: _repeated(field, n, choice)}))
    return [typical, *others]


def any_params(kind: type[Params], n: int) -> st.SearchStrategy[Params]:
    """Return a strategy of valid parameters for n models; numbers are multiples of 1/8, which float32 holds exactly."""

    @st.composite
    def draw_params(draw: st.DrawFn) -> Params:
        values = {name: draw(_values(name, field, n)) for name, field in kind.model_fields.items()}
        try:
            return kind(**values)
        except ValidationError:
            reject()

    return draw_params()


def _repeated(field: FieldInfo, n: int, value: Any) -> Any:
    return (value,) * n if is_per_model(field) else value


def _values(name: str, field: FieldInfo, n: int) -> st.SearchStrategy[Any]:
    if is_per_model(field):
        return st.tuples(*[_of_type(_element(field), [], name, n)] * n)
    return _of_type(field.annotation, field.metadata, name, n)


def _element(field: FieldInfo) -> Any:
    arguments = typing.get_args(field.annotation)
    assert arguments[1:] == (...,), "a per-model field is a tuple[..., ...]"
    return arguments[0]


def _of_type(kind: Any, limits: list[Any], name: str, n: int) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        extra = [each.metadata if isinstance(each, FieldInfo) else [each] for each in arguments[1:]]
        return _of_type(arguments[0], sum(extra, limits), name, n)
    if origin in (Union, types.UnionType):
        return st.one_of([_of_type(each, limits, name, n) for each in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        # Most integers count models or are places among them.
        return _whole(limits, 1, 0, n)
    if kind is float:
        return _whole(limits, 8, -16, 16).map(lambda eighths: eighths / 8)
    raise RuleBroken(
        f"the battery cannot make values for the parameter {name}, of type {kind}",
        hint="use numbers, booleans, Literal, or a union of them; per_model for one value per model",
    )


def _whole(limits: list[Any], parts: int, low: int, high: int) -> st.SearchStrategy[int]:
    """Return a strategy of numbers of parts of one, between a field's limits where it has some."""
    for limit in limits:
        if isinstance(limit, annotated_types.Ge):
            low = round(parts * typing.cast(float, limit.ge))
        if isinstance(limit, annotated_types.Gt):
            low = round(parts * typing.cast(float, limit.gt)) + 1
        if isinstance(limit, annotated_types.Le):
            high = round(parts * typing.cast(float, limit.le))
        if isinstance(limit, annotated_types.Lt):
            high = round(parts * typing.cast(float, limit.lt)) - 1
    return st.integers(low, max(low, high))


def _choices(kind: Any) -> list[Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return [choice for each in arguments for choice in _choices(each)]
    if origin is Literal:
        return list(arguments)
    return [False, True] if kind is bool else []
