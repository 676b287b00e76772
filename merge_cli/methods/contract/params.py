"""The parameters of methods: pydantic models whose fields describe themselves to recipes and to the help."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Weights = tuple[float, ...]
Density = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(alias="lambda", description="scale λ of the merged task vector", examples=[0.75])]


class Params(BaseModel):
    """Parameters of a method, resolved for one tensor.

    A field made with :func:`per_model` is a tuple with one value per model; any other holds for all models. A field
    made with ``setting=True`` must be the same for every tensor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


def per_model(default: Any = ..., *, description: str, constant: bool = False, example: Any = None) -> Any:
    """Declare a field with one value per model; without a default every model must be given one.

    Args:
        default: The value of a model that is given none.
        description: One line.
        constant: Whether it must be the same for every tensor.
        example: A value to show, and to test with, where the default switches something off.
    """
    extra = {
        "per_model": True,
        "constant": constant,
        "required": default is ...,
        "each": None if default is ... else default,
    }
    if example is not None:
        extra["example"] = example
    return Field(..., description=description, json_schema_extra=extra)


def setting(default: Any, *, description: str, **limits: Any) -> Any:
    """Declare a field that must be the same for every tensor."""
    return Field(default, description=description, json_schema_extra={"constant": True}, **limits)


def is_per_model(field: FieldInfo) -> bool:
    """Tell whether the field has one value per model."""
    return bool(_extra(field).get("per_model"))


def is_constant(field: FieldInfo) -> bool:
    """Tell whether the field must be the same for every tensor."""
    return bool(_extra(field).get("constant"))


def field_default(field: FieldInfo) -> Any:
    """Return the value used where a recipe gives none; None where it must give one."""
    if is_per_model(field):
        return _extra(field).get("each")
    return None if field.is_required() else field.default


def field_examples(field: FieldInfo) -> list[Any]:
    """Return values to show and to test with: those the field names; one half where a number must be given."""
    given = [_extra(field)["example"]] if "example" in _extra(field) else list(field.examples or ())
    return given or ([0.5] if must_be_given(field) else [])


def must_be_given(field: FieldInfo) -> bool:
    """Tell whether a recipe must give the parameter a value, for each model where it has one per model."""
    return bool(_extra(field)["required"]) if is_per_model(field) else field.is_required()


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
