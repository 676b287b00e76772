import subprocess
import sys

import pytest
import torch

from merge_cli.checkpoint import DType, parse_float_dtype, to_torch
from merge_cli.checkpoint.dtypes import dtype_named
from tests.checkpoint.helpers import TORCH_DTYPES


@pytest.mark.parametrize(("name", "dtype"), TORCH_DTYPES.items())
def test_every_dtype_has_torchs_size_kind_and_name(name: str, dtype: torch.dtype) -> None:
    ours = DType(name)
    assert to_torch(ours) is dtype
    assert dtype_named(str(dtype).removeprefix("torch.")) is ours
    assert ours.itemsize == dtype.itemsize
    assert ours.is_float == dtype.is_floating_point
    assert f"torch.{ours.torch_name}" == str(dtype)


def test_the_table_of_these_tests_has_every_dtype() -> None:
    assert set(TORCH_DTYPES) == set(DType.__members__)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32])
def test_a_dtype_that_no_safetensors_file_holds_is_none(dtype: torch.dtype) -> None:
    assert dtype_named(str(dtype).removeprefix("torch.")) is None


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("bfloat16", "BF16"), ("torch.bfloat16", "BF16"), ("bf16", "BF16"), ("float16", "F16"), ("fp16", "F16"),
        ("half", "F16"), ("float32", "F32"), ("fp32", "F32"), ("float", "F32"), ("torch.float64", "F64"),
        ("double", "F64"), ("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2"),
    ],
)  # fmt: skip
def test_recipes_name_floating_point_dtypes_the_way_torch_does(text: str, dtype: str) -> None:
    assert parse_float_dtype(text) is DType(dtype)


@pytest.mark.parametrize("text", ["int8", "torch.int64", "bool", "BF16", "", "quux"])
def test_what_is_no_floating_point_dtype_is_refused_with_the_names_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=f"^'{text}' is not a floating-point dtype; "):
        parse_float_dtype(text)


def test_a_misspelt_dtype_is_answered_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'bfloat16'\?$"):
        parse_float_dtype("bfloat61")


def test_the_package_is_imported_without_torch_or_transformers_or_the_hub() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'huggingface_hub', 'safetensors'}"
    code = f"import sys, merge_cli.checkpoint; sys.exit(','.join({heavy} & set(sys.modules)) or None)"
    subprocess.run([sys.executable, "-c", code], check=True)
