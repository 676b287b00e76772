"""From stored numbers to float32, less a base, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_cli.kernels import PATTERNS, count_nonfinite, from_float32, to_float32
from tests.kernels.floats import FORMATS, magnitudes, nearest, pattern_of

# Exact in every dtype below, the smallest float16 and a number at the end of a chunk among them.
VALUES = [1.0, -2.5, 0.0, 2.0**-14, -(2.0**-24), 256.0] + [0.5] * 2000 + [-3.0]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_keep_their_value(dtype: torch.dtype) -> None:
    out = torch.full((2, len(VALUES)), 7.0)
    stored = torch.tensor([VALUES, VALUES[::-1]]).to(dtype)
    assert to_float32(stored, name(dtype), out) == [0, 0]
    assert out.tolist() == [VALUES, VALUES[::-1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_base_is_taken_from_every_row(dtype: torch.dtype) -> None:
    stored, out = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]]).to(dtype), torch.empty(2, 3)
    assert to_float32(stored, name(dtype), out, torch.tensor([1.0, 0.25, 8.0])) == [0, 0]
    assert out.tolist() == [[0.0, 1.75, -11.0], [-0.5, -0.25, -4.0]]


def test_float32_is_worked_on_in_place() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, math.inf]])
    assert to_float32(rows, "float32", rows, torch.tensor([0.5, 1.0])) == [0, 1]
    assert rows.tolist() == [[0.5, 1.0], [2.5, math.inf]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("less", [None, torch.ones(5000)])
def test_what_is_not_finite_is_counted_by_row(dtype: torch.dtype, wrong: float, less: Tensor | None) -> None:
    stored = torch.zeros(3, 5000)
    stored[0, [0, 511, 512, 4999]] = wrong
    stored[2, 1] = wrong
    assert to_float32(stored.to(dtype), name(dtype), torch.empty(3, 5000), less) == [4, 0, 1]


def test_a_sum_that_overflows_is_not_a_number_that_does() -> None:
    largest = torch.finfo(torch.float32).max
    out = torch.empty(1, 4)
    assert to_float32(torch.full((1, 4), largest), "float32", out) == [0]
    assert out.tolist() == [[largest] * 4]


def test_a_float64_beyond_float32_is_infinite_there() -> None:
    assert to_float32(torch.tensor([[1e300, 1.0]], dtype=torch.float64), "float64", torch.empty(1, 2)) == [1]


def test_rows_that_are_not_contiguous_are_converted_too() -> None:
    out = torch.empty(2, 3)
    assert to_float32(torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.bfloat16).T, "bfloat16", out) == [0, 0]
    assert out.tolist() == [[1, 3, 5], [2, 4, 6]]


# --- every number of the narrow dtypes, by the definition of their bits ----------------------------------------------


def cast_back(patterns: Any, dtype: str, *, tensors: bool) -> tuple[list[int], Any]:
    """Return what :func:`to_float32` says of one row of patterns, and the row."""
    if tensors:
        out = torch.empty(1, len(patterns))
        return to_float32(torch.from_numpy(patterns)[None].view(getattr(torch, dtype)), dtype, out), out[0].numpy()
    row = np.empty((1, len(patterns)), dtype=np.float32)
    return to_float32(patterns[None], dtype, row), row[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("tensors", [True, False], ids=["tensors", "arrays"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_pattern_stands_for_its_number(dtype: str, tensors: bool) -> None:
    bits, _, largest, infinity = FORMATS[dtype]
    half = 2 ** (bits - 1)
    wrong, row = cast_back(np.arange(2 * half).astype(PATTERNS[dtype]), dtype, tensors=tensors)
    finite = magnitudes(dtype)[: largest + 1].astype(np.float32)
    for begin, sign in ((0, np.float32(1)), (half, np.float32(-1))):
        assert row[begin : begin + largest + 1].tobytes() == (finite * sign).tobytes()
        if infinity != 2 ** (bits - 1) - 1:
            assert row[begin + infinity] == sign * math.inf
        assert np.isnan(row[begin + largest + 2 : begin + half]).all()
    assert wrong == [2 * (half - largest - 1)]


def numbers_to_round(dtype: str) -> Any:
    """Return every number of a dtype, what lies half-way between neighbours, and the float32 on both sides of that."""
    # What would come after the largest bfloat16 is no float32.
    known = magnitudes(dtype)[:-1] if dtype == "bfloat16" else magnitudes(dtype)
    half = (known[1:] + known[:-1]) / 2
    further = [known[-1] * 1.0001, 1e30, np.finfo(np.float32).max, math.inf, 2.0**-149, 1e-30]
    edges = np.concatenate([known, half, further]).astype(np.float32)
    with np.errstate(all="ignore"):
        up, down = np.nextafter(edges, np.float32(math.inf)), np.nextafter(edges, np.float32(0))
    numbers = np.concatenate([edges, up, down])
    return np.concatenate([numbers, -numbers])


@pytest.mark.parametrize("dtype", FORMATS)
def test_numbers_are_rounded_to_the_nearest_ties_to_even(dtype: str) -> None:
    numbers = numbers_to_round(dtype)
    out = np.empty(len(numbers), dtype=PATTERNS[dtype])
    wrong = from_float32(numbers, dtype, out)  # type: ignore[arg-type]
    expected = nearest(numbers, dtype)
    assert out.tolist() == expected.tolist()
    bits, _, largest, _ = FORMATS[dtype]
    assert wrong == int((expected % 2 ** (bits - 1) > largest).sum()) > 0


@pytest.mark.parametrize("dtype", FORMATS)
def test_torch_rounds_the_same_and_counts_the_same(dtype: str) -> None:
    numbers = numbers_to_round(dtype)
    if dtype == "float8_e4m3fn":
        # Beyond 464 some versions of torch give the largest number; that is counted all the same.
        numbers = np.concatenate([numbers[np.abs(numbers) <= 464], np.float32([0.0])])
    out = torch.empty(len(numbers), dtype=getattr(torch, dtype))
    wrong = from_float32(torch.from_numpy(numbers), dtype, out)
    expected = nearest(numbers, dtype)
    assert pattern_of(out).tolist() == expected.tolist()
    bits, _, largest, _ = FORMATS[dtype]
    assert wrong == int((expected % 2 ** (bits - 1) > largest).sum())
    if dtype == "float8_e4m3fn":
        assert from_float32(torch.tensor([464.0, 465.0, -1e9, math.nan]), dtype, out[:4]) == 3


@pytest.mark.parametrize("dtype", PATTERNS)
def test_what_is_not_a_number_stays_none(dtype: str) -> None:
    out = np.empty(3, dtype=PATTERNS[dtype])
    numbers = np.array([math.nan, 1.0, -math.nan], dtype=np.float32)
    assert from_float32(numbers, dtype, out) == 2  # type: ignore[arg-type]
    held = torch.from_numpy(out).view(getattr(torch, dtype)).float()
    assert held.isnan().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_as_wide_is_kept_as_it_is(dtype: str) -> None:
    out = np.empty(3, dtype=PATTERNS[dtype])
    assert from_float32(np.array([1.5, -math.inf, 2.0**-149], dtype=np.float32), dtype, out) == 1  # type: ignore[arg-type]
    assert out.tolist() == [1.5, -math.inf, 2.0**-149]


@pytest.mark.parametrize("dtype", FORMATS)
def test_numbers_that_are_not_finite_are_counted_as_they_are_stored(dtype: str) -> None:
    bits, _, largest, _ = FORMATS[dtype]
    stored = np.arange(2**bits).astype(PATTERNS[dtype])
    assert count_nonfinite(stored, dtype) == 2 * (2 ** (bits - 1) - largest - 1)
    assert count_nonfinite(stored[:100], dtype) == 0


def test_a_float64_is_judged_as_one() -> None:
    assert count_nonfinite(np.array([1e300, math.inf, math.nan, 1.0]), "float64") == 2
    assert count_nonfinite(np.array([[3e38, 3e38, -math.inf]], dtype=np.float32), "float32") == 1
