"""A merge method and a preparing step, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from merge_cli.kernels import Array
from merge_cli.methods.contract.block import Block, Input
from merge_cli.methods.contract.measure import Measure
from merge_cli.methods.contract.params import Params


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Diagnosis of a merge: its prospects.

    Attributes:
        values: Numbers by name.
        warnings: What predicts failure, in sentences, each with what to do.
        notes: What the numbers mean, in sentences.
        models: The same of each model, to be read behind its name; empty where there is nothing to say.
    """

    values: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CurvatureScale:
    """Scale to which a method wants mean Fishers turned into curvatures.

    Attributes:
        mean: Whether they stay on the mean scale, so that all data sets count alike.
        examples: What each model's is multiplied with; None, for a model or for all, is what its file says.
        base_examples: The same for the base.
    """

    mean: bool = False
    examples: tuple[float | None, ...] | None = None
    base_examples: float | None = None


class Scope(StrEnum):
    """The least that a method must see at once."""

    ELEMENT = "element"
    ROW = "row"
    TENSOR = "tensor"


def _no_measure(_: Any) -> None:
    return None


def _never(_: Any) -> bool:
    return False


def element_wise(params: Any, shape: tuple[int, ...]) -> Scope:
    """Return the scope of a method that sees any run of elements of any tensor."""
    return Scope.ELEMENT


def _by_file(_: Any) -> CurvatureScale:
    return CurvatureScale()


def _all_of_each(_: Any) -> None:
    return None


def _usual(_: Any) -> str:
    return ""


def _nothing(sums: Mapping[str, float], measured: Any, params: Any) -> Diagnosis:
    return Diagnosis({})


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        merge: ``(block, params) -> merged``, shape ``(numel,)`` or ``(rows, columns)``.
        params: The type of its parameters.
        needs: ``(params, available) -> what merge and measure read``; ``available`` is what the recipe names.
        summary: One line.
        equation: The formula, as text.
        source: The paper.
        differs: What other tools' method of this name does differently; empty where nothing.
        models: The fewest and the most models it takes (None: any number), the base not counted where it is needed.
        scope: ``(params, shape) -> Scope``: what a block of a tensor of this shape must hold at least. A method of
            whole matrices may take embeddings, and all that is no matrix, element by element: blocks are small then.
        workspace: ``(params, n) -> float32 numbers per element of a block`` that merge and measure take beside their
            inputs, at their peak, the result included; None for as much again as the inputs.
        measure: ``params -> Measure``, None where the parameters given need none.
        copies: ``params -> bool``: whether the result is the only model itself, so that its bytes can be copied.
        caution: ``params -> str``: what is unusual about the parameters, such as the total weight; empty where nothing
            is. Asked while planning.
        effective_weights: ``params -> how much of each model, or of its task vector, the result takes``, were nothing
            dropped, trimmed or weighed element by element; None for all of each.
        curvature_scale: ``params -> CurvatureScale``; only asked where it reads curvatures.
        diagnose: ``(sums, measured, params) -> Diagnosis``: reads what :meth:`Block.add` summed, what the method's
            measure over the model found, and the parameters of one tensor.
        counts: What :meth:`Block.count` counts -> what became of so many elements, to be read behind their number.
        emits: Names of what else it gives, to :meth:`Block.emit`; each may be written as an output of its own.
        fixed_point: Parameters under which a model merged with copies of itself is returned, one value of each for all
            models, beside weights that are equal and sum to 1 and defaults for the rest; None where there are none.
        rounds_before_deciding: ``params -> bool``: whether it rounds numbers before they decide something, a sign by
            their sum for one, so that those that cancel in the definition may not cancel here.
        numpy: Whether merge and measure also take numpy arrays, so that torch need not be imported for them: they use
            operators and :mod:`merge_cli.kernels` only, see :mod:`merge_cli.kernels.backend`.
        version: Raised whenever results change, so that no interrupted merge continues under another definition.
    """

    merge: Callable[[Block, Any], Array]
    params: type[Params]
    needs: Callable[[Any, frozenset[Input]], frozenset[Input]]
    summary: str
    equation: str
    source: str
    differs: str = ""
    models: tuple[int, int | None] = (1, None)
    scope: Callable[[Any, tuple[int, ...]], Scope] = element_wise
    workspace: Callable[[Any, int], float] | None = None
    measure: Callable[[Any], Measure | None] = _no_measure
    copies: Callable[[Any], bool] = _never
    caution: Callable[[Any], str] = _usual
    effective_weights: Callable[[Any], Sequence[float] | None] = _all_of_each
    curvature_scale: Callable[[Any], CurvatureScale] = _by_file
    diagnose: Callable[[Mapping[str, float], Any, Any], Diagnosis] = _nothing
    counts: Mapping[str, str] = field(default_factory=dict)
    emits: tuple[str, ...] = ()
    fixed_point: Mapping[str, Any] | None = field(default_factory=dict)
    rounds_before_deciding: Callable[[Any], bool] = _never
    numpy: bool = False
    version: int = 1


@dataclass(frozen=True)
class Step:
    """A step that changes the task vectors before a method sees them.

    Attributes:
        apply: ``(block, params) -> deltas``, shape ``(n, numel)``; reads ``block.deltas``, draws from ``block.masks``.
        params: The type of its parameters.
        measure: ``params -> Measure`` over ``block.deltas``, None where none is needed.
        source: The paper.
        numpy: Whether it also takes numpy arrays, as for :class:`Method`.
        version: Raised whenever results change.
    """

    apply: Callable[[Block, Any], Array]
    params: type[Params]
    source: str
    measure: Callable[[Any], Measure | None] = _no_measure
    numpy: bool = False
    version: int = 1
