"""Element types of safetensors files, under the names that their headers use."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

from merge_cli.text import did_you_mean

if TYPE_CHECKING:
    import torch


class DType(StrEnum):
    """An element type; the value is its name in a safetensors header."""

    BOOL = "BOOL"
    U8 = "U8"
    I8 = "I8"
    I16 = "I16"
    U16 = "U16"
    I32 = "I32"
    U32 = "U32"
    I64 = "I64"
    U64 = "U64"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F16 = "F16"
    BF16 = "BF16"
    F32 = "F32"
    F64 = "F64"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return _ITEMSIZE[self]

    @property
    def is_float(self) -> bool:
        """Tell whether arithmetic makes sense on it; the others are copied."""
        return self in _FLOATS

    @property
    def torch_name(self) -> str:
        """Its name in recipes and configurations, without the ``torch.`` prefix."""
        return _TORCH_NAME[self]


_ITEMSIZE = {
    DType.BOOL: 1, DType.U8: 1, DType.I8: 1, DType.I16: 2, DType.U16: 2, DType.I32: 4, DType.U32: 4, DType.I64: 8,
    DType.U64: 8, DType.F8_E4M3: 1, DType.F8_E5M2: 1, DType.F16: 2, DType.BF16: 2, DType.F32: 4, DType.F64: 8,
}  # fmt: skip
_FLOATS = frozenset({DType.F8_E4M3, DType.F8_E5M2, DType.F16, DType.BF16, DType.F32, DType.F64})
_TORCH_NAME = {
    DType.BOOL: "bool", DType.U8: "uint8", DType.I8: "int8", DType.I16: "int16", DType.U16: "uint16",
    DType.I32: "int32", DType.U32: "uint32", DType.I64: "int64", DType.U64: "uint64", DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E5M2: "float8_e5m2", DType.F16: "float16", DType.BF16: "bfloat16", DType.F32: "float32",
    DType.F64: "float64",
}  # fmt: skip
_FROM_TORCH_NAME = {name: dtype for dtype, name in _TORCH_NAME.items()}
_SHORT_NAMES = {"half": DType.F16, "fp16": DType.F16, "bf16": DType.BF16, "fp32": DType.F32, "float": DType.F32,
                "double": DType.F64}  # fmt: skip


def parse_float_dtype(text: str) -> DType:
    """Read a floating-point dtype the way recipes write it: ``bfloat16``, ``torch.float32``, ``fp16``.

    Raises:
        ValueError: If it is no such name; the message says which ones there are.
    """
    name = text.removeprefix("torch.")
    dtype = _FROM_TORCH_NAME.get(name) or _SHORT_NAMES.get(name)
    if dtype is None or not dtype.is_float:
        known = [name for name, dtype in _FROM_TORCH_NAME.items() if dtype.is_float]
        guess = did_you_mean(name, known)
        raise ValueError(f"'{text}' is not a floating-point dtype; {guess or 'expected one of ' + ', '.join(known)}")
    return dtype


def dtype_named(torch_name: str) -> DType | None:
    """Return the dtype that torch calls so, or None where a safetensors file cannot hold it (complex, quantised)."""
    return _FROM_TORCH_NAME.get(torch_name)


@cache
def to_torch(dtype: DType) -> torch.dtype:
    """Return torch's own name for a dtype; imports torch on first use."""
    import torch

    found = getattr(torch, dtype.torch_name)
    assert isinstance(found, torch.dtype)
    return found
