"""Backends of the kernels: one for each kind of array, chosen here and nowhere else.

``cpu`` works on numpy arrays: compiled from C where the installation found a compiler, and otherwise in numpy, which
gives the same bytes and takes longer. ``torch`` works on torch tensors, on any device. Torch takes a process most of a
second to import, more than many a merge, so it is imported where a GPU or a method of torch's own functions asks for
it. Tensors in the memory of the CPU are handed to the cpu backend, which shares their memory.

Type checkers are told of tensors only. Code that is given either kind of array may use the operators (``*=`` too),
slices, ``len``, ``shape``, ``abs`` and ``tolist``, which both have, and the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from merge_cli.kernels import compiled
from merge_cli.kernels.numpy_backend import NumpyBackend
from merge_cli.optional import import_optional

if TYPE_CHECKING:
    from torch import Tensor as Array
else:
    Array = Any

__all__ = ["CPU", "Array", "Backend", "backend_for", "backend_of", "empty", "higher", "lower"]


class Backend(Protocol):
    """The kernels for one kind of array. Rows are float32, ``(n, numel)``, and a row ``(numel,)``.

    Attributes:
        name: ``cpu`` or ``torch``.
        compiled: Whether the kernels are compiled from this package's C.
    """

    name: str
    compiled: bool

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return a new float32 array, its content undefined."""

    def staging(self, nbytes: int) -> NDArray[np.uint8]:
        """Return memory of this machine that files are read into and written from, fit for the device to copy."""

    def from_numpy(self, numbers: NDArray[np.float32]) -> Array:
        """Return numbers as an array of this kind, which may share their memory."""

    def shared(self, array: Array) -> NDArray[np.float32] | None:
        """Return an array's memory as numpy's, None where it is on a device."""

    def plain(self, array: Array) -> Array:
        """Return an array as contiguous float32."""

    def column(self, values: Sequence[float]) -> Array:
        """Return numbers as a float32 column, shape ``(n, 1)``."""

    def lower(self, one: Array, other: Array) -> Array:
        """Return the lower of each pair of numbers."""

    def higher(self, one: Array, other: Array) -> Array:
        """Return the higher of each pair of numbers."""

    def concatenate(self, pieces: Sequence[Array]) -> Array:
        """Return rows one after the other as one row."""

    def largest(self, magnitudes: Array, ranks: Sequence[int]) -> list[float]:
        """Return the magnitudes of these ranks, 1 for the largest, given in falling order; reorders the magnitudes."""

    def to_float32(self, stored: Any, dtype: str, less: Array | None, out: Array) -> list[int]:
        """Carry out :func:`merge_cli.kernels.casts.to_float32`."""

    def from_float32(self, numbers: Array, dtype: str, out: Any) -> int:
        """Carry out :func:`merge_cli.kernels.casts.from_float32`."""

    def zero_below(self, row: Array, bound: float, factor: float, out: Array) -> None:
        """Zero what is no larger in magnitude than ``bound``, and multiply the rest."""

    def in_bracket(self, row: Array, low: float, high: float) -> tuple[int, NDArray[np.int32]]:
        """Return how many magnitudes lie from ``high`` on, and the bit patterns of those in [low, high) less ``low``'s.

        ``high`` is NaN where there is no upper end.
        """

    def sum_models(self, rows: Array) -> Array:
        """Carry out :func:`merge_cli.kernels.sums.sum_models`."""

    def weighted_sum(self, rows: Sequence[Array], weights: Sequence[float]) -> Array:
        """Carry out :func:`merge_cli.kernels.sums.weighted_sum`."""

    def elect_sign(self, weighted: Array, *, by_count: bool, plus: bool) -> Array:
        """Carry out :func:`merge_cli.kernels.sign_election.elect_sign`; with ``plus`` a balanced vote elects +."""

    def disjoint_merge(
        self, weighted: Array, weights: Sequence[float], *, by_count: bool, plus: bool, least_divisor: float | None
    ) -> Array:
        """Sum what agrees with the elected sign, over its models' weights where they come to ``least_divisor``.

        None divides nowhere. ``weighted`` may be overwritten.
        """

    def draw(
        self, row: Array | None, keys: tuple[int, int, int, int], start: int, limit: int, rest: int, out: Array
    ) -> None:
        """Multiply a row, or ones, with a random mask.

        Args:
            row: The row; None for the mask alone.
            keys: The halves of the key of the words that four elements share, and of those of an element's own.
            start: Index of the first element; no index reaches 2**32.
            limit: Drawn bytes below it keep their elements.
            rest: Where a byte is the limit, the element's own word below this keeps it; 0 if none does.
            out: Where the result goes.
        """

    def chunk_sums(self, rows: Array, length: int) -> Array:
        """Sum each row over runs of ``length`` elements, in float64: shape ``(n, runs)``, on the CPU."""

    def chunk_gram(self, first: Array, second: Array, length: int) -> Array:
        """Sum the squares of two rows and their products over runs, in float64: shape ``(3, runs)``, on the CPU."""


CPU = compiled.CompiledBackend(compiled.LIBRARY) if compiled.LIBRARY is not None else NumpyBackend()
"""Backend for numpy arrays."""


def backend_of(array: Array) -> Backend:
    """Return what works on an array."""
    if isinstance(array, np.ndarray):
        return CPU
    from merge_cli.kernels import torch_backend

    return torch_backend.backend_of(array, CPU)


def backend_for(device: str, *, tensors: bool = False) -> Backend:
    """Return what works on a device: without torch on the CPU, unless ``tensors`` are asked for; by torch elsewhere."""
    if device == "cpu" and not tensors:
        return CPU  # type: ignore[return-value]
    import_optional("torch", f"the device {device}")
    from merge_cli.kernels import torch_backend

    return torch_backend.shared_backend(CPU) if device == "cpu" else torch_backend.TorchBackend(device)


def empty(like: Array, *shape: int) -> Array:
    """Return a new float32 array of the kind and on the device of another one, its content undefined."""
    return backend_of(like).empty(shape)


def lower(one: Array, other: Array) -> Array:
    """Return the lower of each pair of numbers."""
    return backend_of(one).lower(one, other)


def higher(one: Array, other: Array) -> Array:
    """Return the higher of each pair of numbers."""
    return backend_of(one).higher(one, other)
