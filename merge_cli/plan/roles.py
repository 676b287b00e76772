"""Roles: what a checkpoint is to a merge."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "model"


@dataclass(frozen=True, slots=True)
class Role:
    """Role of a checkpoint in a merge: one of the models, the base, or a companion of either.

    Attributes:
        kind: ``model``, or the kind of a companion.
        index: Which of the models it is or belongs to; None for the base.
    """

    kind: str
    index: int | None = None

    @property
    def is_model(self) -> bool:
        """Tell whether it is the base or a model itself."""
        return self.kind == MODEL

    @property
    def owner(self) -> Role:
        """The role of the model that a companion belongs to; a model's own."""
        return Role(MODEL, self.index)

    def __str__(self) -> str:
        if self.index is not None:
            return f"{self.kind} {self.index}"
        return "base" if self.is_model else f"base {self.kind}"


BASE = Role(MODEL)
