"""Rebuild functions in torch's pickles, and the tensor descriptions that they return.

The arguments come from whoever made the file, so every number in them is checked before use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.dtypes import DType, dtype_named
from merge_cli.checkpoint.extent import Extent

_MOST_DIMENSIONS = 64


class DamagedPickleError(Exception):
    """The pickle cannot be what torch wrote."""


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor of the archive: its elements in C order, ``offset`` bytes into the file.

    Attributes:
        dtype: None where a safetensors file cannot hold it.
        shape: Of the tensor.
        offset: Of its first byte; 0 where it has none.
        trouble: Why its bytes are not its elements in order; empty where they are.
    """

    dtype: DType | None
    shape: tuple[int, ...]
    offset: int
    trouble: str = ""

    def named(self, name: str, file: Path) -> Extent:
        """Return it as a tensor of a weight file; it must be without trouble."""
        assert self.dtype is not None
        return Extent(name, self.dtype, self.shape, file, self.offset)


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of the file; ``dtype`` is torch's name of what they hold, unless the tensor says another."""

    dtype: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Named:
    """A name of torch's that tensors are made of: what it makes of its arguments, or the dtype that it is."""

    make: Callable[..., Any] | None = None
    dtype: str = ""


def itemsize_of(dtype: str) -> int:
    """Return the bytes of an element of what torch calls so."""
    known = dtype_named(dtype)
    return known.itemsize if known is not None else {"complex64": 8, "complex128": 16}.get(dtype, 1)


def _tensor(
    storage: Any,
    storage_offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> PickledTensor:
    """Check and describe a tensor whose storage knows its type."""
    if not isinstance(storage, Storage) or type(requires_grad) is not bool or type(hooks) is not dict:
        raise TypeError("no tensor")
    if not _are_naturals((storage_offset,)) or not _are_naturals(size) or not _are_naturals(stride):
        raise TypeError("no sizes")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise ValueError("sizes and strides of other dimensions")
    if math.prod(each for each in size if each) >= 2**63:
        raise DamagedPickleError("a tensor has more elements than can be counted")
    itemsize, numel = itemsize_of(storage.dtype), math.prod(size)
    extent = 1 + sum((each - 1) * step for each, step in zip(size, stride, strict=True)) if numel else 0
    if (storage_offset + extent) * itemsize > storage.nbytes:
        raise DamagedPickleError("a tensor reaches beyond its storage")
    dtype = dtype_named(storage.dtype)
    trouble = "" if dtype is not None else f"dtype torch.{storage.dtype}"
    if not trouble and not _is_contiguous(size, stride):
        trouble = "a transposed or strided layout"
    elif not trouble and metadata:
        trouble = "a sign that is applied on reading"
    return PickledTensor(dtype, size, storage.start + storage_offset * itemsize if numel else 0, trouble)


def _tensor_of_dtype(
    storage: Any,
    storage_offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> PickledTensor:
    """Describe a tensor that says its type itself."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Named) or not dtype.dtype:
        raise TypeError("no dtype")
    typed = Storage(dtype.dtype, storage.start, storage.nbytes)
    return _tensor(typed, storage_offset, size, stride, requires_grad, hooks, metadata)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> PickledTensor:
    if not isinstance(data, PickledTensor):
        raise TypeError("no parameter")
    return data


def _with_attributes(make: Any, kind: Any, arguments: Any, attributes: Any) -> Any:
    """Describe a tensor on which attributes were set, without them."""
    if not isinstance(make, Named) or make.make not in (_tensor, _tensor_of_dtype) or type(arguments) is not tuple:
        raise TypeError("no tensor")
    return make.make(*arguments)


def _mapping(*pairs: Any) -> dict[str, Any]:
    if pairs:
        raise TypeError("a mapping that does not begin empty")
    return {}


def _size(values: Any) -> tuple[int, ...]:
    if not _are_naturals(values):
        raise TypeError("no size")
    found: tuple[int, ...] = values
    return found


def _layout(name: Any) -> str:
    # Only texts may be written out: what is nested and shared may have a text that is longer than any memory.
    return name[:100] if type(name) is str else "unknown"


def _other(layout: Any, *_: Any) -> PickledTensor:
    return PickledTensor(None, (), 0, f"layout {_layout(layout)} on device cpu")


def _without_bytes(*_: Any) -> PickledTensor:
    return PickledTensor(None, (), 0, "layout torch.strided on device meta")


def _are_naturals(values: Any) -> bool:
    return type(values) is tuple and all(type(each) is int and 0 <= each < 2**63 for each in values)


def _is_contiguous(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for each, step in zip(reversed(size), reversed(stride), strict=True):
        if each != 1 and step != expected:
            return 0 in size
        expected *= each
    return True


_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
_DTYPES = (*(dtype.torch_name for dtype in DType), "complex64", "complex128")
NAMED: dict[str, Named] = {
    "torch._utils _rebuild_tensor_v2": Named(_tensor),
    "torch._utils _rebuild_tensor_v3": Named(_tensor_of_dtype),
    "torch._utils _rebuild_parameter": Named(_parameter),
    "torch._tensor _rebuild_from_type_v2": Named(_with_attributes),
    "torch._utils _rebuild_sparse_tensor": Named(_other),
    "torch._utils _rebuild_meta_tensor_no_storage": Named(_without_bytes),
    "torch.serialization _get_layout": Named(_layout),
    "collections OrderedDict": Named(_mapping),
    "torch Size": Named(_size),
    "torch Tensor": Named(),
    "torch.nn.parameter Parameter": Named(),
    "torch.storage UntypedStorage": Named(dtype="uint8"),
    **{f"torch {name}": Named(dtype=dtype) for name, dtype in _STORAGES.items()},
    **{f"torch {name}": Named(dtype=name) for name in _DTYPES},
}
