"""Which entries Model Breadcrumbs keeps, on numbers worked out by hand."""

from __future__ import annotations

import pytest

from merge_cli.kernels import GRAIN
from merge_cli.methods import find_method
from merge_cli.methods.prepare import keep_largest
from merge_cli.testing import Setup, params_for, run
from merge_cli.testing.arrays import same_bits
from tests.methods.support import family, merged, smooth_tensors

DELTAS = [1.0, -9.0, 2.0, 7.0, -3.0, 8.0, 4.0, -6.0, 5.0, -10.0]


def kept(delta: list[float], density: float, gamma: float) -> list[float]:
    """Return what is left of a task vector."""
    inputs = family(base=[0.0] * len(delta), models=[delta])
    return merged("breadcrumbs", inputs, weight=(1.0,), density=(density,), gamma=(gamma,)).tolist()


def test_the_largest_and_the_smallest_entries_go() -> None:
    # Of ten entries two go from the top, five stay, three go from the bottom.
    assert kept(DELTAS, 0.5, 0.2) == [0, 0, 0, 7, 0, 8, 4, -6, 5, 0]


def test_fewer_go_from_the_top_where_density_leaves_fewer_to_drop() -> None:
    # Nine of ten stay, so that one goes and not two.
    assert kept(DELTAS, 0.9, 0.2) == [1, -9, 2, 7, -3, 8, 4, -6, 5, 0]
    assert kept(DELTAS, 1.0, 0.2) == DELTAS


def test_of_a_tensor_too_small_for_gamma_nothing_goes_from_the_top() -> None:
    assert kept([1.0, -2.0, 3.0, -4.0], 0.5, 0.2) == [0, 0, 3, -4]


def test_one_entry_stays_unless_density_is_zero() -> None:
    assert kept([1.0, -2.0, 3.0], 0.1, 0.0) == [0, 0, 3]
    assert kept([1.0, -2.0, 3.0], 0.1, 0.4) == [0, -2, 0]
    # It is the smallest where all larger ones go.
    assert kept([1.0, -2.0, 3.0], 0.1, 1.0) == [1, 0, 0]
    assert kept([1.0, -2.0, 3.0], 0.0, 0.4) == [0, 0, 0]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_equal_magnitudes_stay_or_go_together_in_any_order(order: list[int]) -> None:
    # By rank 3 and one 2 stay; the other 2 is as large as the one that stays.
    delta = [5.0, 3.0, -2.0, 2.0, 1.0]
    left = [0.0, 3.0, -2.0, 2.0, 0.0]
    assert kept([delta[i] for i in order], 0.4, 0.2) == [left[i] for i in order]
    assert kept([-1.0, 1.0, 1.0, -1.0, 1.0], 0.4, 0.2) == [-1, 1, 1, -1, 1]


def test_tensors_too_long_to_be_held_keep_the_same_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    method = find_method("breadcrumbs")
    tensors = smooth_tensors(0, 2, {"first": 2 * GRAIN + 9, "second": 700})
    params = params_for(method.params, 2, weight=(0.5, 1.0), density=(0.3, 0.7), gamma=(0.1, 0.02))
    held = run(method, params, tensors)
    monkeypatch.setattr(keep_largest, "_MOST_COLLECTED", 100)
    long = run(method, params, tensors, Setup(cut=1, shuffle=0))
    assert same_bits(held.tensors, long.tensors)
    assert held.measured == long.measured
