"""From stored numbers to float32, less a base."""

import math

import pytest
import torch

from merge_cli.kernels import widen

# Exact in every dtype below, the smallest float16 and a number at the end of a chunk among them.
VALUES = [1.0, -2.5, 0.0, 2.0**-14, -(2.0**-24), 256.0] + [0.5] * 2000 + [-3.0]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_keep_their_value(dtype: torch.dtype) -> None:
    out = torch.full((2, len(VALUES)), 7.0)
    stored = torch.tensor([VALUES, VALUES[::-1]]).to(dtype)
    assert widen(stored, out) == [0, 0]
    assert out.tolist() == [VALUES, VALUES[::-1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_base_is_taken_from_every_row(dtype: torch.dtype) -> None:
    out = torch.empty(2, 3)
    assert widen(torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]]).to(dtype), out, torch.tensor([1.0, 0.25, 8.0])) == [
        0,
        0,
    ]
    assert out.tolist() == [[0.0, 1.75, -11.0], [-0.5, -0.25, -4.0]]


def test_float32_is_worked_on_in_place() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, math.inf]])
    assert widen(rows, rows, torch.tensor([0.5, 1.0])) == [0, 1]
    assert rows.tolist() == [[0.5, 1.0], [2.5, math.inf]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("less", [None, torch.ones(5000)])
def test_what_is_not_finite_is_counted_by_row(dtype: torch.dtype, wrong: float, less: torch.Tensor | None) -> None:
    stored = torch.zeros(3, 5000)
    stored[0, [0, 511, 512, 4999]] = wrong
    stored[2, 1] = wrong
    assert widen(stored.to(dtype), torch.empty(3, 5000), less) == [4, 0, 1]


def test_a_sum_that_overflows_is_not_a_number_that_does() -> None:
    largest = torch.finfo(torch.float32).max
    out = torch.empty(1, 4)
    assert widen(torch.full((1, 4), largest), out) == [0]
    assert out.tolist() == [[largest] * 4]


def test_a_float64_beyond_float32_is_infinite_there() -> None:
    assert widen(torch.tensor([[1e300, 1.0]], dtype=torch.float64), torch.empty(1, 2)) == [1]


def test_rows_that_are_not_contiguous_are_converted_too() -> None:
    out = torch.empty(2, 3)
    assert widen(torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.bfloat16).T, out) == [0, 0]
    assert out.tolist() == [[1, 3, 5], [2, 4, 6]]
