"""Companions: the kinds of files that lie beside a model and tell more of it than its weights, a row for each.

What opens, checks, reads or reports companions goes over this table, so that a new kind is a row here, and whatever
measures it. A method names what it reads in its ``needs``, and finds it in the block: :meth:`Block.companion`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from merge_cli.methods.contract.block import Input

Shape = tuple[int, ...]


def same_shape(shape: Shape) -> Shape:
    """Return the shape of a companion that has a number for each of the tensor's."""
    return shape


@dataclass(frozen=True)
class Companion:
    """A kind of file beside a model, with tensors of the model's names.

    Attributes:
        kind: Its name: the recipe's key beside a model, the role of its files, and what their metadata call it.
        title: What messages call it.
        description: What the recipe's key beside a model holds, for help.
        base_description: The same of its key for the base.
        rows: The input of a block that it gives, one row per model.
        base: The same for that of the base, which the recipe names under ``base_KIND``; None where the base has none.
        scaled: The input that it gives times the number of examples; None where there is none.
        base_scaled: The same for the base.
        accepted: What a file's metadata may call it, besides nothing.
        reduction: Over examples: ``mean`` or ``sum``; a file that says the other is refused.
        least: The smallest number that it may hold; None for any.
        optional: Whether a method that reads it does so with some parameters only.
        at_base: Whether that of a model may have been measured at the base, which removing a task takes.
        shape: From the shape of a tensor to that of what the file holds of it.
        whole: Whether a block gets all of it, whatever part of the tensor the block is.
    """

    kind: str
    title: str
    description: str
    rows: str
    base_description: str = ""
    base: str | None = None
    scaled: str | None = None
    base_scaled: str | None = None
    accepted: tuple[str, ...] = ()
    reduction: str = "mean"
    least: float | None = None
    optional: bool = False
    at_base: bool = False
    shape: Callable[[Shape], Shape] = same_shape
    whole: bool = False

    @property
    def inputs(self) -> frozenset[str]:
        """The inputs that the models' files give."""
        return frozenset({self.rows, self.scaled} - {None})  # type: ignore[arg-type]

    @property
    def base_inputs(self) -> frozenset[str]:
        """The inputs that the base's file gives."""
        return frozenset({self.base, self.base_scaled} - {None})  # type: ignore[arg-type]

    @property
    def base_key(self) -> str:
        """The recipe's key for that of the base."""
        return f"base_{self.kind}"


COMPANIONS: tuple[Companion, ...] = (
    Companion(
        kind="fisher",
        title="Fisher",
        description="checkpoint that holds this model's Fisher diagonal",
        base_description="checkpoint that holds the base's Fisher diagonal",
        rows=Input.FISHER,
        base=Input.BASE_FISHER,
        scaled=Input.CURVATURE,
        base_scaled=Input.BASE_CURVATURE,
        accepted=("fisher", "precision"),
        reduction="mean",
        least=0.0,
        at_base=True,
    ),
    Companion(
        kind="gradient",
        title="gradient",
        description="checkpoint that holds the gradient of this model's summed loss",
        rows=Input.GRADIENTS,
        accepted=("gradient",),
        reduction="sum",
        optional=True,
    ),
)


def companion(kind: str) -> Companion:
    """Return the companion of a kind that is in the table."""
    return next(each for each in COMPANIONS if each.kind == kind)
