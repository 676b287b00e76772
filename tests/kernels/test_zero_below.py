"""Zeroing entries by magnitude and by mask."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_cli.kernels import zero_below

SMALLEST = 2.0**-149


def test_entries_at_the_threshold_are_kept_and_smaller_ones_dropped() -> None:
    # The float32 below 1/2 is 1/2 - 2**-25.
    delta = torch.tensor([[0.5, -0.5, 0.5 - 2.0**-25, -0.25, 0.0, 2.0]])
    assert zero_below(delta, [0.5]).tolist() == [[0.5, -0.5, 0.0, 0.0, 0.0, 2.0]]


def test_every_row_has_its_own_threshold() -> None:
    delta = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, -2.0, 3.0], [1.0, 2.0, 3.0]])
    kept = zero_below(delta, [0.0, 3.0, 2.0, math.inf])
    assert kept.tolist() == [[1, 2, 3], [0, 0, 3], [0, -2, 3], [0, 0, 0]]


def test_the_largest_float_is_a_threshold_like_others() -> None:
    largest = (2 - 2.0**-23) * 2.0**127
    delta = torch.tensor([[largest, -largest, largest / 2]])
    assert zero_below(delta, [largest]).tolist() == [[largest, -largest, 0.0]]


def test_threshold_zero_keeps_every_bit() -> None:
    delta = torch.tensor([[-0.0, SMALLEST, 1.0]])
    assert torch.equal(zero_below(delta, [0.0]).view(torch.int32), delta.view(torch.int32))


def test_denormal_thresholds_are_inclusive_too() -> None:
    delta = torch.tensor([[SMALLEST, -2 * SMALLEST, 3 * SMALLEST, 0.0]])
    assert zero_below(delta, [SMALLEST]).tolist() == [[SMALLEST, -2 * SMALLEST, 3 * SMALLEST, 0.0]]
    assert zero_below(delta, [2 * SMALLEST]).tolist() == [[0.0, -2 * SMALLEST, 3 * SMALLEST, 0.0]]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30), st.floats(0, width=32))
@settings(max_examples=80, deadline=None, database=None, derandomize=True)
def test_trimming_agrees_with_a_comparison_of_magnitudes(values: list[float], threshold: float) -> None:
    kept = zero_below(torch.tensor([values], dtype=torch.float32), [threshold])[0].tolist()
    # An infinite threshold keeps nothing, not even infinity.
    assert kept == [x if abs(x) >= threshold and threshold < math.inf else 0.0 for x in values]


def test_trimming_twice_is_trimming_once() -> None:
    delta = torch.tensor([[0.1, -0.7, 0.4], [3.0, 2.0, -1.0]])
    once = zero_below(delta, [0.4, 2.0])
    assert torch.equal(zero_below(once, [0.4, 2.0]), once)


def test_rows_and_thresholds_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        zero_below(torch.ones(2, 3), [1.0])


def test_the_task_vectors_stay_as_they_are() -> None:
    delta = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    zero_below(delta, [0.0, 3.5])
    assert delta._version == 0
    assert delta.tolist() == [[1.0, 2.0], [3.0, 4.0]]
