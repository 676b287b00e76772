"""The kinds of arrays that a method may be given, and the comparison of results to the bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merge_cli.kernels import Array
from merge_cli.methods.contract import Input, Method, Step

Numbers = NDArray[np.float32]
Tensors = Mapping[str, Mapping[Input, Array]]
"""Tensor name -> input -> rows ``(n, numel)`` of the models, ``(numel,)`` of the base."""


@dataclass(frozen=True)
class ArrayKind:
    """A kind of array.

    Attributes:
        name: For messages and test ids.
        make: ``numpy array -> array of this kind``; a copy.
    """

    name: str
    make: Callable[[Numbers], Array]

    def convert(self, tensors: Mapping[str, Mapping[Input, Numbers]]) -> dict[str, dict[Input, Array]]:
        """Return copies of tensors as arrays of this kind."""
        return {name: {key: self.make(rows) for key, rows in inputs.items()} for name, inputs in tensors.items()}


def cpu_kinds(what: Method | Step) -> list[ArrayKind]:
    """Return the kinds in the memory of the CPU that a method or a step takes, as far as they are installed."""
    kinds = [ArrayKind("numpy", _numpy_array)] if what.numpy else []
    return kinds + ([ArrayKind("torch", _torch_tensor)] if _has_torch() else [])


def gpu_kinds() -> list[ArrayKind]:
    """Return torch tensors on a GPU, where there are both."""
    if not _has_torch():
        return []
    import torch

    return [ArrayKind("gpu", lambda rows: _torch_tensor(rows).cuda())] if torch.cuda.is_available() else []


def numbers_of(array: Array) -> Numbers:
    """Return the numbers of an array of any kind; those in the memory of the CPU are shared, not copied."""
    if isinstance(array, np.ndarray):
        return array
    numbers: Numbers = array.detach().cpu().numpy()
    return numbers


def join(pieces: Sequence[Array]) -> Array:
    """Return arrays one after the other along their last dimension; a single one as it is."""
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces, axis=-1)
    import torch

    return torch.cat(list(pieces), dim=-1)


def contiguous(array: Array) -> Array:
    """Return an array whose numbers lie one after the other; a copy where they do not."""
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()


def bits_of(array: Array) -> NDArray[np.uint8]:
    """Return the bytes of an array, which unlike its values tell 0.0 from -0.0."""
    return np.ascontiguousarray(numbers_of(array)).reshape(-1).view(np.uint8)


def same_bits(left: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    """Tell whether two results are the same to the bit."""
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and np.array_equal(bits_of(left[name]), bits_of(right[name]))
        for name in left
    )


def same_value(left: Any, right: Any) -> bool:
    """Tell whether two measured values are the same.

    Numbers, arrays, and tuples, lists, mappings, dataclasses of them.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
    if is_dataclass(left):
        return all(same_value(getattr(left, name), getattr(right, name)) for name in left.__dataclass_fields__)
    if hasattr(left, "shape") and hasattr(left, "dtype"):
        return same_bits({"": left}, {"": right})
    # A threshold may be infinite, and is then equal to itself; NaN is equal to nothing, and no measure gives it.
    return bool(left == right)


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _numpy_array(rows: Numbers) -> Array:
    return np.array(rows)  # type: ignore[return-value]


def _torch_tensor(rows: Numbers) -> Array:
    import torch

    return torch.from_numpy(np.array(rows))
