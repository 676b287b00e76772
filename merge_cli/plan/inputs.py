"""The checkpoints of a recipe, found and opened, each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from merge_cli.checkpoint import Checkpoint, FileIdentity, Files, locate, open_checkpoint
from merge_cli.errors import RecipeError
from merge_cli.methods.contract import COMPANIONS, Companion, Input, Method
from merge_cli.plan.roles import BASE, MODEL, Role
from merge_cli.recipe import ModelEntry, Recipe


@dataclass(frozen=True)
class Inputs:
    """The checkpoints that a merge reads.

    Attributes:
        entries: The recipe's entries that count as models; the base's own entry is not among them where the method
            works on task vectors.
        models: Their checkpoints, in the same order.
        base: The base, None where the recipe names none.
        companions: Kind -> one checkpoint per model, of the kinds that are read.
        base_companions: Kind -> the base's.
        needs: What the method and the preparing steps read.
    """

    entries: tuple[ModelEntry, ...]
    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    companions: Mapping[str, tuple[Checkpoint, ...]] = field(default_factory=dict)
    base_companions: Mapping[str, Checkpoint] = field(default_factory=dict)
    needs: frozenset[Input] = frozenset()

    @property
    def uses_base(self) -> bool:
        """Tell whether the base's numbers enter, and not only its configuration and tokenizer."""
        return Input.BASE in self.needs

    @property
    def reference(self) -> Checkpoint:
        """The checkpoint whose tensor names, dtypes and order the output has."""
        return self.base if self.base is not None and self.uses_base else self.models[0]

    @property
    def parts(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that are merged: the models, after the base where its numbers enter."""
        return (*((self.base,) if self.base is not None and self.uses_base else ()), *self.models)

    def by_role(self) -> Iterator[tuple[Role, Checkpoint]]:
        """Yield each checkpoint with what it is: base, models, companions of the models, those of the base."""
        if self.base is not None:
            yield BASE, self.base
        for kind, group in ((MODEL, self.models), *self.companions.items()):
            for i, checkpoint in enumerate(group):
                yield Role(kind, i), checkpoint
        for kind, checkpoint in self.base_companions.items():
            yield Role(kind), checkpoint

    def with_roles(self, roles: Mapping[Role, Checkpoint]) -> Inputs:
        """Return the same inputs with other checkpoints in their roles."""
        return replace(
            self,
            base=roles.get(BASE),
            models=tuple(roles[Role(MODEL, i)] for i in range(len(self.models))),
            companions={
                kind: tuple(roles[Role(kind, i)] for i in range(len(group))) for kind, group in self.companions.items()
            },
            base_companions={kind: roles[Role(kind)] for kind in self.base_companions},
        )

    def notes(self) -> Iterator[str]:
        """Yield what was found out of the ordinary in a checkpoint and set right, with its name, once."""
        yield from dict.fromkeys(f"{each.label}: {note}" for _, each in self.by_role() for note in each.notes)

    def identities(self) -> tuple[FileIdentity, ...]:
        """Return the identity of every file, each once."""
        files = {file.path: file for _, checkpoint in self.by_role() for file in checkpoint.files}
        return tuple(files.values())


class InputResolver:
    """Finds and opens checkpoints by what the recipe calls them; one that is named twice is opened once."""

    def __init__(self, recipe: Recipe, files: Files) -> None:
        self._folders = recipe.origin.folders
        self._files = files
        self._opened: dict[Path, Checkpoint] = {}
        self._found: dict[str, Path] = {}

    def path(self, reference: str) -> Path:
        """Return where a checkpoint is."""
        if reference not in self._found:
            self._found[reference] = locate(reference, self._folders)
        return self._found[reference]

    def open(self, reference: str) -> Checkpoint:
        """Return the checkpoint that a recipe calls ``reference``."""
        path = self.path(reference)
        if path not in self._opened:
            self._opened[path] = open_checkpoint(path, label=reference, files=self._files)
        return self._opened[path]

    def same(self, one: str, other: str) -> bool:
        """Tell whether two references mean the same checkpoint."""
        return one == other or self.path(one).resolve() == self.path(other).resolve()


def resolve_inputs(recipe: Recipe, method: Method, needs: frozenset[Input], files: Files) -> Inputs:
    """Find and open every checkpoint that the recipe names and the method needs.

    Raises:
        RecipeError: If the number of models does not suit the method, or an input that it needs is not named.
        CheckpointError: If a checkpoint cannot be used.
    """
    resolver = InputResolver(recipe, files)
    origin = recipe.origin
    if Input.BASE in needs and recipe.base_model is None:
        raise RecipeError(f"{origin.at('merge_method')}: {recipe.merge_method} needs base_model")
    base = recipe.base_model
    entries = tuple(
        entry
        for entry in recipe.models
        if base is None or Input.BASE not in needs or not resolver.same(entry.model, base)
    )
    _check_count(recipe, method, len(entries))
    if recipe.prepare:
        # The steps work on task vectors; a base that the method takes for a model stays one, of a zero task vector.
        needs |= {Input.BASE, Input.DELTAS}
    companions = {
        each.kind: tuple(resolver.open(_named(recipe, entry, each.kind)) for entry in entries)
        for each in COMPANIONS
        if needs & each.inputs
    }
    base_companions = {
        each.kind: resolver.open(_named_of_base(recipe, each)) for each in COMPANIONS if needs & each.base_inputs
    }
    models = tuple(resolver.open(entry.model) for entry in entries)
    opened_base = resolver.open(base) if base is not None else None
    return Inputs(entries, models, opened_base, companions, base_companions, needs)


def _named(recipe: Recipe, entry: ModelEntry, what: str) -> str:
    reference = entry.companion(what)
    if reference is None:
        place = recipe.origin.at("models", recipe.models.index(entry))
        raise RecipeError(
            f"{place}: {recipe.merge_method} needs a {what} for {entry.model}",
            hint=f"add `{what}: PATH` beside its `model:`",
        )
    return reference


def _named_of_base(recipe: Recipe, each: Companion) -> str:
    reference = recipe.base_companion(each.kind)
    if reference is None:
        raise RecipeError(f"{recipe.origin.name}: {recipe.merge_method} needs {each.base_key} beside base_model")
    return reference


def _check_count(recipe: Recipe, method: Method, count: int) -> None:
    fewest, most = method.models
    if fewest <= count and (most is None or count <= most):
        return
    wanted = f"at least {fewest}" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"
    besides = " besides the base" if count < len(recipe.models) or recipe.base_model is not None else ""
    plural = "" if wanted == "1" else "s"
    raise RecipeError(
        f"{recipe.origin.at('models')}: {recipe.merge_method} takes {wanted} model{plural}{besides}, "
        f"the recipe gives {count}"
    )
