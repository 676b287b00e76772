"""Rules about what a method says of itself: recipes, help and the model card are made from it."""

from __future__ import annotations

import math

from pydantic import ValidationError

from merge_cli.methods.contract import Method, Step, field_default, is_per_model
from merge_cli.testing.draws import usual_models
from merge_cli.testing.parameters import typical_params
from merge_cli.testing.rules import RuleBroken, require

_SOURCES = ("arXiv", "doi", "no paper")


def check_description(what: Method | Step) -> None:
    """Check that it says what it is, where it comes from, and what each parameter is."""
    require(
        any(mark in what.source for mark in _SOURCES),
        f"the source is {what.source!r}",
        hint="name the paper by arXiv number or doi, or say 'no paper: ...'",
    )
    require(what.version >= 1, f"the version is {what.version}", hint="begin with 1, and raise it when results change")
    for name, field in what.params.model_fields.items():
        require(
            field.description and "\n" not in field.description,
            f"the parameter {name} is described as {field.description!r}",
            hint="give every field a description of one line",
        )
    if isinstance(what, Method):
        _check_method(what)


def _check_method(method: Method) -> None:
    require(
        method.summary and "\n" not in method.summary,
        f"the summary is {method.summary!r}",
        hint="say in one line what it does",
    )
    require(
        method.equation.startswith("merged = "),
        f"the equation is {method.equation!r}",
        hint="write it as 'merged = ...'",
    )
    fewest, most = method.models
    require(
        fewest >= 1 and (most is None or most >= fewest),
        f"models is {method.models}",
        hint="give the fewest, at least 1, and the most models, or None",
    )
    for params in typical_params(method.params, usual_models(method, 2)):
        require(
            method.workspace is None or method.workspace(params, 2) > 0,
            f"the workspace for two models is {method.workspace and method.workspace(params, 2)}",
            hint="give float32 numbers per element, the result included, or None",
        )


def check_parameters(what: Method | Step) -> None:
    """Check that wrong parameters are refused, and that defaults and examples fit."""
    n = usual_models(what, 3)
    typical = typical_params(what.params, n)[0].model_dump()
    for name, field in what.params.model_fields.items():
        if is_per_model(field):
            require(
                isinstance(typical[name], tuple) and len(typical[name]) == n,
                f"the parameter {name} has {typical[name]!r} for {n} models",
                hint="declare a field of one value per model as tuple[..., ...]",
            )
        for wrong in (math.nan, math.inf):
            _check_refused(what, {**typical, name: (wrong,) * n if is_per_model(field) else wrong}, name)
        require(
            field_default(field) is not None or field.is_required() or field.default is None,
            f"the default of {name} is lost",
            hint="declare fields with per_model, setting, or pydantic's Field",
        )
    _check_refused(what, {**typical, "denisty": 0.5}, "denisty")


def _check_refused(what: Method | Step, values: dict[str, object], name: str) -> None:
    try:
        what.params(**values)
    except ValidationError as error:
        if name in str(error):
            return
        raise RuleBroken(
            f"{name}={values[name]!r} is refused without its name: {error}", hint="let the error name the parameter"
        ) from error
    raise RuleBroken(
        f"{name}={values[name]!r} is accepted by {what.params.__name__}",
        hint="derive parameters from merge_cli.methods.contract.Params; it refuses what is not declared or not finite",
    )
