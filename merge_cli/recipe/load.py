"""Loading of recipes from YAML, with errors that say where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merge_cli.checkpoint import Files, parse_float_dtype
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.methods import find_method, find_step, method_names, step_names
from merge_cli.methods.contract import Method, is_per_model
from merge_cli.recipe.explaining import explained, keys_of, said_of
from merge_cli.recipe.mergekit import UNREAD_KEYS, UNUSED_PARAMETERS, refuse_unsupported
from merge_cli.recipe.overrides import apply_override
from merge_cli.recipe.schema import Origin, Recipe
from merge_cli.recipe.yaml_document import Document, Place, parse_yaml
from merge_cli.text import did_you_mean, printable

_MOST_KEYS = 1_000


def load_recipe(source: Path | str, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: A path, or the YAML text itself where it has more than one line.
        overrides: ``place=value`` each, such as ``models.0.parameters.weight=0.3``.

    Raises:
        RecipeError: With the line and a hint, if it cannot be read or is not a recipe.
    """
    if isinstance(source, str) and "\n" in source:
        return parse_recipe(source, overrides=overrides)
    path = Path(source)
    return parse_recipe(read_text(path), name=printable(path.name), folder=path.resolve().parent, overrides=overrides)


def parse_recipe(
    text: str,
    *,
    name: str = "recipe",
    folder: Path | None = None,
    others: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> Recipe:
    """Read a recipe from YAML text; the arguments are those of :class:`Origin`."""
    document = parse_yaml(text, name)
    data = document.data
    if not isinstance(data, dict):
        raise RecipeError(f"{name} is not a recipe: expected a mapping with merge_method and models")
    if len(data) > _MOST_KEYS:
        raise RecipeError(f"{name} has {len(data)} keys, more than any recipe", hint="is it the right file?")
    for override in overrides:
        apply_override(data, override)
    origin = Origin(name, text, folder or Path.cwd(), tuple(others), tuple(overrides), document.lines)
    _refuse_dtype(data, origin)
    refuse_unsupported(data, origin)
    warnings = list(_check_holders(data, document, origin))
    data = {key: value for key, value in data.items() if key in keys_of(Recipe) or key not in document.anchored}
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise explained(error, origin, _all_parameters()) from error
    return check_recipe(recipe.with_origin(replace(origin, warnings=tuple(warnings))))


def check_recipe(recipe: Recipe) -> Recipe:
    """Check what the form of a recipe does not show: its method, and the parameters of the method and of the steps.

    Returns:
        The recipe, with a warning for each parameter that is not used.

    Raises:
        RecipeError: With the place and a hint.
    """
    origin = recipe.origin
    try:
        method = find_method(recipe.merge_method)
    except RecipeError as error:
        what = error.message.removeprefix("merge_method: ")
        raise RecipeError(f"{origin.at('merge_method')}: {what}", hint=error.hint) from error
    warnings = (*origin.warnings, *_check_parameters(recipe, method, origin))
    _check_prepare(recipe, origin)
    return recipe.with_origin(replace(origin, warnings=tuple(dict.fromkeys(warnings))))


def _check_holders(data: dict[str, Any], document: Document, origin: Origin) -> Iterator[str]:
    """Refuse a recipe's key that stands twice; yield a warning where what only holds anchors may be a slip of the pen.

    Published recipes define anchors under top-level keys of their own, often under the same key again and again.
    """
    for key, line in document.repeated.items():
        if key in keys_of(Recipe) or key in UNREAD_KEYS:
            raise RecipeError(f"{origin.name}:{line}: '{key}' stands twice")
    for key in data:
        if key not in document.anchored or key in keys_of(Recipe):
            continue
        guess = did_you_mean(key, keys_of(Recipe))
        if guess:
            yield f"{origin.at(key)}: there is no such key, so it counts for its anchors only; {guess}"


def _refuse_dtype(data: dict[str, Any], origin: Origin) -> None:
    """Refuse a wrong dtype, whatever else the recipe asks for."""
    for key in ("dtype", "out_dtype"):
        if data.get(key) is not None:
            try:
                parse_float_dtype(str(data[key]))
            except ValueError as error:
                raise RecipeError(f"{origin.at(key)}: {error}") from error


def _check_parameters(recipe: Recipe, method: Method, origin: Origin) -> Iterator[str]:
    """Refuse parameters that no method has; yield a warning for each that is not used where it stands."""
    fields = {field.alias or name: field for name, field in method.params.model_fields.items()}
    places: list[tuple[Place, Iterable[str]]] = [(("parameters",), recipe.parameters)]
    places += [(("models", i, "parameters"), entry.parameters) for i, entry in enumerate(recipe.models)]
    for place, names in places:
        for name in names:
            at = origin.at(*place, name)
            if name in fields:
                if len(place) > 1 and not is_per_model(fields[name]):
                    yield f"{at}: {name} counts for all models, so only in the recipe's parameters; it is not used here"
                continue
            if name not in _all_parameters():
                guess = did_you_mean(name, fields)
                raise RecipeError(
                    f"{at}: {recipe.merge_method} has no such parameter",
                    hint=f"{guess + ' ' if guess else ''}{recipe.merge_method} takes {', '.join(sorted(fields))}",
                )
            yield f"{at}: {recipe.merge_method} has no such parameter; it is not used"


def _all_parameters() -> frozenset[str]:
    """Return the parameters of any method; to look, every method must be imported."""
    return UNUSED_PARAMETERS.union(*(keys_of(find_method(name).params) for name in method_names()))


def _check_prepare(recipe: Recipe, origin: Origin) -> None:
    """Refuse steps under ``prepare`` that do not exist, or whose parameters do not fit."""
    for name, parameters in recipe.prepare.items():
        if name not in step_names():
            known = ", ".join(step_names())
            raise RecipeError(
                f"{origin.at('prepare', name)}: there is no such step",
                hint=did_you_mean(name, step_names()) or f"there are {known}",
            )
        try:
            find_step(name).params.model_validate(parameters)
        except ValidationError as error:
            findings = error.errors()
            place = ("prepare", name, *findings[0]["loc"])
            known = ", ".join(keys_of(find_step(name).params))
            raise RecipeError(f"{origin.at(*place)}: {said_of(findings[0])}", hint=f"{name} takes {known}") from error
    if recipe.prepare and recipe.base_model is None:
        raise RecipeError(f"{origin.at('prepare')}: steps change task vectors, and without base_model there are none")


_MOST_BYTES = 1_000_000
# Where a shell puts what comes through a pipe; it is there to be read, and may be waited for.
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def read_text(path: Path) -> str:
    """Return the text of a file, or of a stream that the shell provides, of up to 1 MB.

    Raises:
        RecipeError: If it cannot be read, or is no such text.
    """
    try:
        return _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text", hint="is it the right file?") from error


def _read(path: Path) -> bytes:
    try:
        if not str(path).startswith(_STREAMS):
            return Files().read_whole(path, most=_MOST_BYTES)
        with read_errors(path), path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except CheckpointError as error:
        what = error.message.replace("cannot read", "cannot read the recipe", 1)
        raise RecipeError(what, hint=error.hint) from error
    if len(raw) > _MOST_BYTES:
        raise RecipeError(f"{path} has more than {_MOST_BYTES} bytes", hint="is it the right file?")
    return raw
