"""From stored numbers to float32, less a base, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_cli.kernels import PATTERNS, compiled, narrow, widen

# Exact in every dtype below, the smallest float16 and a number at the end of a chunk among them.
VALUES = [1.0, -2.5, 0.0, 2.0**-14, -(2.0**-24), 256.0] + [0.5] * 2000 + [-3.0]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
NARROW = [torch.bfloat16, torch.float16]


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def patterns(tensor: Tensor) -> Any:
    """Return what numpy holds of a tensor: its bit patterns."""
    return tensor.view(torch.uint16).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_keep_their_value(dtype: torch.dtype) -> None:
    out = torch.full((2, len(VALUES)), 7.0)
    stored = torch.tensor([VALUES, VALUES[::-1]]).to(dtype)
    assert widen(stored, name(dtype), out) == [0, 0]
    assert out.tolist() == [VALUES, VALUES[::-1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_base_is_taken_from_every_row(dtype: torch.dtype) -> None:
    stored, out = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]]).to(dtype), torch.empty(2, 3)
    assert widen(stored, name(dtype), out, torch.tensor([1.0, 0.25, 8.0])) == [0, 0]
    assert out.tolist() == [[0.0, 1.75, -11.0], [-0.5, -0.25, -4.0]]


def test_float32_is_worked_on_in_place() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, math.inf]])
    assert widen(rows, "float32", rows, torch.tensor([0.5, 1.0])) == [0, 1]
    assert rows.tolist() == [[0.5, 1.0], [2.5, math.inf]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("less", [None, torch.ones(5000)])
def test_what_is_not_finite_is_counted_by_row(dtype: torch.dtype, wrong: float, less: Tensor | None) -> None:
    stored = torch.zeros(3, 5000)
    stored[0, [0, 511, 512, 4999]] = wrong
    stored[2, 1] = wrong
    assert widen(stored.to(dtype), name(dtype), torch.empty(3, 5000), less) == [4, 0, 1]


def test_a_sum_that_overflows_is_not_a_number_that_does() -> None:
    largest = torch.finfo(torch.float32).max
    out = torch.empty(1, 4)
    assert widen(torch.full((1, 4), largest), "float32", out) == [0]
    assert out.tolist() == [[largest] * 4]


def test_a_float64_beyond_float32_is_infinite_there() -> None:
    assert widen(torch.tensor([[1e300, 1.0]], dtype=torch.float64), "float64", torch.empty(1, 2)) == [1]


def test_rows_that_are_not_contiguous_are_converted_too() -> None:
    out = torch.empty(2, 3)
    assert widen(torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.bfloat16).T, "bfloat16", out) == [0, 0]
    assert out.tolist() == [[1, 3, 5], [2, 4, 6]]


# --- arrays of numpy, for which there are only compiled kernels -------------------------------------------------------


@pytest.fixture
def _compiled() -> None:
    if compiled.LIBRARY is None:
        pytest.skip("the kernels were not compiled")


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("dtype", NARROW)
def test_every_number_of_a_narrow_dtype_is_what_torch_says_it_is(dtype: torch.dtype) -> None:
    stored = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    out = np.empty((1, 2**16), dtype=np.float32)
    wrong = widen(patterns(stored)[None], name(dtype), out)  # type: ignore[arg-type]
    wanted = stored.float()
    assert wrong == [int((~wanted.isfinite()).sum())]
    assert torch.equal(torch.from_numpy(out[0]).nan_to_num(nan=7.0), wanted.nan_to_num(nan=7.0))
    assert (torch.from_numpy(out[0]).signbit() == wanted.signbit())[~wanted.isnan()].all()


def numbers_to_round(dtype: torch.dtype) -> Tensor:
    """Return every number of a dtype, what lies half-way between neighbours, and the float32 on both sides of that."""
    all_ = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).float()
    finite = all_[all_.isfinite()].unique()
    half = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    beyond = torch.tensor([65519.996, 65520.0, 65536.0, 1e30, torch.finfo(torch.float32).max, math.inf])
    edges = torch.cat([finite, half, beyond, -beyond, torch.tensor([0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-25])])
    step = torch.full_like(edges, math.inf)
    return torch.cat([edges, edges.nextafter(step), edges.nextafter(-step)])


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("dtype", NARROW)
def test_numbers_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    numbers = numbers_to_round(dtype)
    out = np.empty(len(numbers), dtype=PATTERNS[name(dtype)])
    wrong = narrow(numbers.numpy(), name(dtype), out)
    wanted = numbers.to(dtype)
    assert wrong == int((~wanted.isfinite()).sum())
    assert out.tolist() == patterns(wanted).tolist()


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("dtype", [*NARROW, torch.float32])
def test_what_is_not_a_number_stays_none(dtype: torch.dtype) -> None:
    out = np.empty(3, dtype=PATTERNS[name(dtype)])
    assert narrow(np.array([math.nan, 1.0, -math.nan], dtype=np.float32), name(dtype), out) == 2
    held = torch.from_numpy(out).view(dtype)
    assert held.isnan().tolist() == [True, False, True]


@pytest.mark.usefixtures("_compiled")
def test_float32_is_kept_as_it_is() -> None:
    out = np.empty(3, dtype=np.float32)
    assert narrow(np.array([1.5, -math.inf, 2.0**-149], dtype=np.float32), "float32", out) == 1
    assert out.tolist() == [1.5, -math.inf, 2.0**-149]
