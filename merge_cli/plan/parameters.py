"""Resolution of a method's parameters for one tensor."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from merge_cli.errors import RecipeError
from merge_cli.methods.contract import Measure, Method, Params, field_default, is_constant, is_per_model, must_be_given
from merge_cli.recipe import Choice, ModelEntry, Recipe, resolve, said_of

_Key = tuple[Any, ...]


class ParameterLookup:
    """Resolves parameters: the model's own value, else the recipe's, else the method's default.

    A filter that does not match passes the question on to the next place. Results are kept, so that the many tensors
    that have the same parameters share one object; so do the variants of a recipe, whose lookups share what is known.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        entries: tuple[ModelEntry, ...],
        known: dict[_Key, Params] | None = None,
    ) -> None:
        self._recipe = recipe
        self._method = method
        self._entries = entries
        self._known = {} if known is None else known
        for name, field in method.params.model_fields.items():
            if is_constant(field):
                self._check_constant(field.alias or name)

    def settings(self) -> Params:
        """Return only what holds for all tensors: the other fields are not set.

        Raises:
            RecipeError: If a setting has a value that the method does not take.
        """
        found: dict[str, Any] = {}
        for name, field in self._method.params.model_fields.items():
            key = field.alias or name
            if not is_constant(field) or is_per_model(field):
                continue
            value = self._recipe.parameters.get(key, field_default(field))
            try:
                kind: Any = Annotated[field.annotation, field]
                found[name] = TypeAdapter(kind).validate_python(value)
            except ValidationError as error:
                raise self._rejected(error.errors()[0], (key,), "") from error
        return self._method.params.model_construct(**found)

    def for_tensor(self, name: str, t: float) -> Params:
        """Return the parameters for the tensor of this name at position t.

        Raises:
            RecipeError: If a value is missing or not one that the method takes.
        """
        values = {
            field.alias or field_name: self._value(field.alias or field_name, field, name, t)
            for field_name, field in self._method.params.model_fields.items()
        }
        key = tuple(values.items())
        if key not in self._known:
            self._known[key] = self._validated({k: v for k, v in values.items() if v is not _UNSET}, name)
        return self._known[key]

    def _value(self, key: str, field: FieldInfo, name: str, t: float) -> Any:
        if not is_per_model(field):
            found = self._shared(key, name, t)
            if found is None and field.is_required():
                raise self._missing(key, name)
            return _UNSET if found is None else found
        return tuple(self._of_model(key, field, entry, name, t) for entry in self._entries)

    def _missing(self, key: str, name: str) -> RecipeError:
        method, origin = self._recipe.merge_method, self._recipe.origin
        if key in self._recipe.parameters:
            return RecipeError(
                f"{origin.at('parameters', key)}: {method} needs {key} for {name}, which no filter matches",
                hint="end it with an entry that has a value and no filter",
            )
        return RecipeError(
            f"{origin.at('merge_method')}: {method} needs {key}", hint=f"add `parameters: {{{key}: ...}}`"
        )

    def _of_model(self, key: str, field: FieldInfo, entry: ModelEntry, name: str, t: float) -> Any:
        own = resolve(entry.parameters[key], name, t) if key in entry.parameters else None
        found = own if own is not None else self._shared(key, name, t)
        if found is not None:
            return found
        if must_be_given(field):
            place = self._recipe.origin.at("models", self._recipe.models.index(entry))
            given = key in entry.parameters or key in self._recipe.parameters
            for_tensor = f" for {name}, which no filter matches" if given else ""
            raise RecipeError(
                f"{place}: {self._recipe.merge_method} needs {key} of {entry.model}{for_tensor}",
                hint=f"add `parameters: {{{key}: ...}}` to the model, or to the recipe for all models",
            )
        return field_default(field)

    def _shared(self, key: str, name: str, t: float) -> Any:
        shared = self._recipe.parameters.get(key)
        return None if shared is None else resolve(shared, name, t)

    def _validated(self, values: dict[str, Any], name: str) -> Params:
        try:
            return self._method.params.model_validate(values)
        except ValidationError as error:
            finding = error.errors()[0]
            raise self._rejected(finding, finding["loc"], name) from error

    def _rejected(self, finding: ErrorDetails, loc: tuple[str | int, ...], name: str) -> RecipeError:
        at = f" (for {name})" if name else ""
        return RecipeError(f"{self._place(loc)}: {said_of(finding)}{at}")

    def _place(self, loc: tuple[str | int, ...]) -> str:
        """Return where the recipe gives the value that pydantic complains about."""
        if not loc:
            return self._recipe.origin.at("parameters")
        key = str(loc[0])
        if len(loc) > 1 and isinstance(loc[1], int) and key in self._entries[loc[1]].parameters:
            i = self._recipe.models.index(self._entries[loc[1]])
            return self._recipe.origin.at("models", i, "parameters", key)
        return self._recipe.origin.at("parameters", key)

    def _check_constant(self, key: str) -> None:
        places: list[tuple[tuple[str | int, ...], Any]] = [(("parameters", key), self._recipe.parameters.get(key))]
        for i, entry in enumerate(self._recipe.models):
            places.append((("models", i, "parameters", key), entry.parameters.get(key)))
        for place, value in places:
            if isinstance(value, (Choice, tuple)):
                raise RecipeError(
                    f"{self._recipe.origin.at(*place)}: must be the same for every tensor, got a list or filters"
                )


class _Unset:
    pass


_UNSET = _Unset()


def check_measure_constants(recipe: Recipe, measure: Measure, all_params: list[Params]) -> None:
    """Refuse parameters of a measure over the whole model that vary between tensors.

    Raises:
        RecipeError: Naming the parameter.
    """
    for name in measure.constants:
        if len({getattr(params, name) for params in all_params}) > 1:
            raise RecipeError(
                f"{recipe.origin.at('parameters')}: {name} counts in the whole model here, so it must be the same for "
                "every tensor",
                hint=f"give {name} as one number per model, or count in each tensor",
            )
