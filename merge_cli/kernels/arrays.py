"""What kernels work on: torch tensors, or numpy arrays where there are compiled kernels for the CPU.

Torch takes a process most of a second to import, more than many a merge. So what a merge imports does not import it
at the top: a method of operators and kernels is given numpy arrays, and torch is imported where a GPU, a dtype that
numpy lacks, or a method of torch's own functions asks for it.

Type checkers are told of tensors only. Code that is given either may use the operators (``*=`` too), slices, ``len``,
``shape``, ``abs`` and ``tolist``, which both have, and the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor as Array
else:
    Array = Any

__all__ = ["Array", "empty", "higher", "is_numpy", "lower"]


def is_numpy(array: Any) -> TypeGuard[np.ndarray[Any, Any]]:
    """Whether an array is numpy's."""
    return isinstance(array, np.ndarray)


def empty(like: Array, *shape: int) -> Array:
    """Return a new array of the kind, dtype and device of another one, its content undefined."""
    return np.empty(shape, like.dtype) if is_numpy(like) else like.new_empty(shape)  # type: ignore[return-value]


def lower(one: Array, other: Array) -> Array:
    """Return the lower of each pair of numbers."""
    if is_numpy(one):
        return np.minimum(one, other)  # type: ignore[no-any-return]
    return one.minimum(other)


def higher(one: Array, other: Array) -> Array:
    """Return the higher of each pair of numbers."""
    if is_numpy(one):
        return np.maximum(one, other)  # type: ignore[no-any-return]
    return one.maximum(other)
