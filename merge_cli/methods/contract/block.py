"""Blocks: one run of a tensor's elements, from every model."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from merge_cli.kernels import GRAIN, Array, Key, backend_of, chunk_sums, keep_mask, make_key

if TYPE_CHECKING:
    import torch


class Input(StrEnum):
    """Something that a method reads; the value is the attribute of :class:`Block` that gives it."""

    MODELS = "models"
    BASE = "base"
    DELTAS = "deltas"
    FISHER = "fisher"
    BASE_FISHER = "base_fisher"
    CURVATURE = "curvature"
    BASE_CURVATURE = "base_curvature"
    GRADIENTS = "gradients"


@dataclass(frozen=True, slots=True)
class Masks:
    """Key of a block's random masks.

    Attributes:
        seed: The recipe's.
        stage: Which of the preparing steps, or the method after them, asks.
        tensor: Its name.
        n: Number of models.
        start: Index of the block's first element in the tensor.
        numel: Elements of the whole tensor; 0 where that is not known.
    """

    seed: int
    stage: int
    tensor: str
    n: int
    start: int
    numel: int = 0

    def key(self, model: int) -> Key:
        """Return the key of a model's mask."""
        return make_key(self.seed, self.stage, model, self.tensor)


@dataclass(frozen=True, slots=True)
class Block:
    """A run of ``numel`` elements of one tensor, float32, on the device where the work is done.

    Inputs are torch tensors, or numpy arrays for a method that takes these. They must not be modified. Reading one that
    the method did not declare in ``needs`` raises LookupError.

    Attributes:
        inputs: What was declared: rows ``(n, numel)`` for what each model has, ``(numel,)`` for what the base has.
        masks: For :meth:`keep_mask`.
        measured: What the method's measure found, None where it has none.
        posterior: Which models are merged ones whose curvature comes from a posterior precision; empty for none.
        counts: What :meth:`count` collected.
        sums: What :meth:`add` collected.
        emitted: What :meth:`emit` was given.
        shape: The shape of the whole tensor. In ROW scope a block holds whole rows of ``shape[-1]`` elements, in TENSOR
            scope all of it.
        grain: Elements that sums take as one: the block starts at a multiple of it, wherever the tensor is cut.
    """

    inputs: Mapping[Input, Array]
    masks: Masks
    measured: Any = None
    posterior: tuple[bool, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    sums: dict[str, array[float]] = field(default_factory=dict)
    emitted: dict[str, Array] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    grain: int = GRAIN

    @property
    def models(self) -> Array:
        """The models θᵢ, shape ``(n, numel)``."""
        return self._input(Input.MODELS)

    @property
    def base(self) -> Array:
        """The base θ₀, shape ``(numel,)``."""
        return self._input(Input.BASE)

    @property
    def deltas(self) -> Array:
        """The deltas θᵢ − θ₀, shape ``(n, numel)``."""
        return self._input(Input.DELTAS)

    @property
    def fisher(self) -> Array:
        """The models' Fisher diagonals on the mean scale, shape ``(n, numel)``."""
        return self._input(Input.FISHER)

    @property
    def base_fisher(self) -> Array:
        """The base's Fisher diagonal on the mean scale, shape ``(numel,)``."""
        return self._input(Input.BASE_FISHER)

    @property
    def curvature(self) -> Array:
        """The models' curvatures Hᵢ = Nᵢ·Fᵢ, shape ``(n, numel)``."""
        return self._input(Input.CURVATURE)

    @property
    def base_curvature(self) -> Array:
        """The base's curvature H₀ = N₀·F₀ without prior precision, shape ``(numel,)``."""
        return self._input(Input.BASE_CURVATURE)

    @property
    def gradients(self) -> Array:
        """The gradients of the models' summed losses at θᵢ, shape ``(n, numel)``."""
        return self._input(Input.GRADIENTS)

    @property
    def n(self) -> int:
        """Number of models."""
        return self.masks.n

    @property
    def numel(self) -> int:
        """Number of elements."""
        return next(iter(self.inputs.values())).shape[-1]

    @property
    def device(self) -> torch.device:
        """Device of the inputs, if they are torch tensors."""
        return next(iter(self.inputs.values())).device

    def has(self, need: Input) -> bool:
        """Tell whether an input was both declared and given."""
        return need in self.inputs

    def column(self, values: Sequence[float]) -> Array:
        """Return one number per model as a column, shape ``(n, 1)``, to multiply rows with."""
        return backend_of(next(iter(self.inputs.values()))).column(values)

    def keep_mask(self, density: Sequence[float]) -> Array:
        """Return random ones and zeros, shape ``(n, numel)``: ones with each model's probability.

        The mask of an element depends on seed, model, tensor and the element's index, on nothing else.
        """
        masks = backend_of(next(iter(self.inputs.values()))).empty((self.n, self.numel))
        for model, (kept, row) in enumerate(zip(density, masks, strict=True)):
            keep_mask(self.masks.key(model), self.masks.start, kept, out=row)
        return masks

    def count(self, what: str, where: Array) -> None:
        """Add the number of true elements to a count that the report shows."""
        self.counts[what] += int(where.sum())

    def add(self, what: str, values: Array) -> None:
        """Add values of shape ``(numel,)`` to a sum over the whole model, for the method's diagnosis."""
        self.sums.setdefault(what, array("d")).extend(chunk_sums(values[None], self.grain)[0].tolist())

    def emit(self, what: str, values: Array) -> None:
        """Give a second result of shape ``(numel,)``; it is written where the plan has an output for it."""
        self.emitted[what] = values

    def companion(self, name: str) -> Array:
        """Return the rows that a companion gives, by the name in its row of the table, shape ``(n, ...)``."""
        return self._input(name)

    def _input(self, need: str) -> Array:
        try:
            return self.inputs[need]  # type: ignore[index]
        except KeyError:
            named = f"Input.{need.name}" if isinstance(need, Input) else repr(need)
            raise LookupError(
                f"the method reads block.{need} without declaring it; add {named} to what its needs() returns"
            ) from None
