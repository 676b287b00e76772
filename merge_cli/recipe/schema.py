"""The recipe: what a user asks for, checked in its form and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    create_model,
    model_validator,
)

from merge_cli.checkpoint import parse_float_dtype
from merge_cli.methods.contract import COMPANIONS
from merge_cli.recipe.values import Value
from merge_cli.recipe.yaml_document import Place


def _reference(raw: Any) -> Any:
    """Accept mergekit's long form of a model reference."""
    if isinstance(raw, dict):
        if set(raw) - {"model"} or not isinstance(raw.get("model"), dict) or set(raw["model"]) - {"path", "revision"}:
            raise ValueError(
                "expected a path or hub id, or {model: {path: ..., revision: ...}}; adapters are not supported yet"
            )
        path, revision = raw["model"].get("path"), raw["model"].get("revision")
        raw = f"{path}@{revision}" if isinstance(path, str) and revision is not None else path
    if isinstance(raw, (int, float, date)):
        # Dates, numbers, yes and no are what YAML makes of words that look like them.
        given = str(raw).lower() if isinstance(raw, bool) else str(raw)[:40]
        raise ValueError(
            f"expected a path or hub id, got {given}, which YAML does not read as text; put quotes around it"
        )
    if not isinstance(raw, str) or not raw.strip():
        given = "nothing; put quotes around ~ and null where they are a name" if raw is None else repr(raw)[:80]
        raise ValueError(f"expected a path or hub id, got {given}")
    return raw.strip()


def _dtype(name: str) -> str:
    return parse_float_dtype(name).torch_name


_LONG_FORM = {
    "type": "object",
    "properties": {
        "model": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "revision": {"type": ["string", "null"]}},
            "required": ["path"],
            "additionalProperties": False,
        }
    },
    "required": ["model"],
    "additionalProperties": False,
}
Reference = Annotated[
    str, BeforeValidator(_reference), WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _LONG_FORM]})
]
DTypeName = Annotated[str, AfterValidator(_dtype)]
Parameters = Annotated[dict[str, Value], BeforeValidator(lambda raw: {} if raw is None else raw)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Model(_Part):
    """One model of a recipe."""

    model: Reference = Field(description="path of a checkpoint, or a hub id with an optional @revision")
    parameters: Parameters = Field(default_factory=dict, description="parameters of this model")

    def companion(self, kind: str) -> str | None:
        """Return what the recipe names as the model's companion of a kind."""
        found: str | None = getattr(self, kind)
        return found


def _companion_fields() -> dict[str, Any]:
    return {each.kind: (Reference | None, Field(None, description=each.description)) for each in COMPANIONS}


if TYPE_CHECKING:
    ModelEntry = _Model
else:
    # A key for every kind of companion.
    ModelEntry = create_model("ModelEntry", __base__=_Model, __module__=__name__, __doc__=_Model.__doc__,
                              **_companion_fields())  # fmt: skip


class Exclusion(_Part):
    """Tensors that are not merged."""

    pattern: str = Field(description="tensor names, with * and ? as wildcards")
    source: Reference | None = Field(
        None,
        alias="from",
        description="model of this recipe to copy them from; default: the base, else the first model",
    )
    drop: bool = Field(False, description="leave them out of the merged checkpoint")

    @model_validator(mode="after")
    def _one_fate(self) -> Self:
        if self.drop and self.source is not None:
            raise ValueError(
                f"'{self.pattern}' is to be dropped and to be copied from {self.source}; give one of the two"
            )
        return self


def _entry(raw: Any) -> Any:
    return {"model": raw} if isinstance(raw, str) else raw


def _exclusion(raw: Any) -> Any:
    return {"pattern": raw} if isinstance(raw, str) else raw


@dataclass(frozen=True)
class Origin:
    """Origin of a recipe.

    Attributes:
        name: What errors call it.
        text: The YAML as read; empty for a recipe made in Python.
        folder: What relative paths start from first.
        others: What they start from next, before the working directory.
        overrides: What ``--set`` changed.
        lines: Line of every place in the text.
        warnings: What is odd about it, in sentences.
    """

    name: str = "recipe"
    text: str = ""
    folder: Path = field(default_factory=Path.cwd)
    others: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()
    lines: Mapping[Place, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders from which a relative path may start, in order."""
        return self.folder, *self.others, Path.cwd()

    def at(self, *place: str | int) -> str:
        """Return ``recipe.yml:5: parameters.density`` for a place, the line that of the closest place known."""
        for length in range(len(place), 0, -1):
            if place[:length] in self.lines:
                return f"{self.name}:{self.lines[place[:length]]}: {'.'.join(map(str, place))}"
        return f"{self.name}: {'.'.join(map(str, place))}" if place else self.name


if TYPE_CHECKING:
    _BaseCompanions = _Part
else:
    # A key for every companion that the base may have.
    _BaseCompanions = create_model(
        "_BaseCompanions",
        __base__=_Part,
        **{each.base_key: (Reference | None, Field(None, description=each.base_description))
           for each in COMPANIONS if each.base is not None},
    )  # fmt: skip


class Recipe(_BaseCompanions):
    """A merge, as its author describes it."""

    merge_method: str = Field(description="what to do with the models")
    base_model: Reference | None = Field(None, description="checkpoint from which the models were fine-tuned")
    models: tuple[Annotated[ModelEntry, BeforeValidator(_entry)], ...] = Field(
        min_length=1, description="the models to merge, in order"
    )
    parameters: Parameters = Field(default_factory=dict, description="parameters for all models")
    prepare: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="steps applied in order to each task vector before the method"
    )
    exclude: tuple[Annotated[Exclusion, BeforeValidator(_exclusion)], ...] = Field(
        default=(), description="tensors that are copied instead of merged"
    )
    dtype: DTypeName | None = Field(None, description="dtype of the output where out_dtype is not given")
    out_dtype: DTypeName | None = Field(None, description="dtype of the output; default: the base's own")
    save_precision: bool = Field(
        False, description="write the merged model's posterior precision to OUT/precision (gradient_matching)"
    )
    seed: int = Field(0, ge=0, description="seed of the random masks")
    name: str | None = Field(None, description="what to call the recipe; not used")
    _origin: Origin = PrivateAttr(default_factory=Origin)

    @model_validator(mode="after")
    def _base_of_companions(self) -> Self:
        for each in COMPANIONS:
            if self.base_companion(each.kind) is not None and self.base_model is None:
                raise ValueError(f"{each.base_key} is given without base_model")
        return self

    def base_companion(self, kind: str) -> str | None:
        """Return what it names as the base's companion of a kind."""
        found: str | None = getattr(self, f"base_{kind}", None)
        return found

    @property
    def origin(self) -> Origin:
        """Origin of the recipe's text."""
        return self._origin

    def with_origin(self, origin: Origin) -> Recipe:
        """Return the same recipe with another origin."""
        copy = self.model_copy()
        copy._origin = origin
        return copy
