"""The preparing steps on numbers worked out by hand, and the search for thresholds in vectors of any length."""

from __future__ import annotations

import math

import pytest
import torch

from merge_cli.kernels import GRAIN
from merge_cli.methods import find_method, find_step
from merge_cli.methods.contract import Block, Input, Masks
from merge_cli.methods.prepare import keep_largest
from merge_cli.methods.prepare.dare import DareParams, dare
from merge_cli.testing import Setup, measure, params_for, run
from merge_cli.testing.arrays import same_bits
from tests import oracle
from tests.methods.support import assert_close, family, smooth_tensors, stepped

BASE = [0, 0, 0, 0]


def deltas_after(step: str, models: list[list[float]], **values: object) -> list[list[float]]:
    return stepped(step, family(base=BASE, models=models), **values)[Input.DELTAS].tolist()


def test_the_largest_entries_of_every_model_are_kept() -> None:
    kept = deltas_after("keep_largest", [[1, -2, 3, -4], [8, 7, -6, 5]], density=0.5)
    assert kept == [[0, 0, 3, -4], [8, 7, 0, 0]]


def test_a_density_below_one_entry_keeps_none_and_one_keeps_all() -> None:
    assert deltas_after("keep_largest", [[1, -2, 3, -4]], density=0.2) == [[0, 0, 0, -4]]
    assert deltas_after("keep_largest", [[1, -2, 3, -4]], density=1) == [[1, -2, 3, -4]]


def test_the_largest_entries_of_a_whole_model_may_lie_in_one_tensor() -> None:
    step = find_step("keep_largest")
    tensors = {
        "a": family(base=BASE, models=[[1, 2, 3, 4], [50, 60, 70, 80]]),
        "b": family(base=BASE, models=[[10, 20, 30, 40], [5, 6, 7, 8]]),
    }
    result = run(step, params_for(step.params, 2, density=0.5, scope="model"), tensors).tensors
    assert result["a"].tolist() == [[0, 0, 0, 0], [50, 60, 70, 80]]
    assert result["b"].tolist() == [[10, 20, 30, 40], [0, 0, 0, 0]]


def test_entries_are_dropped_by_the_mask_of_their_model_and_tensor_and_the_rest_divided_by_what_is_kept() -> None:
    masks = [oracle.keep_mask((3, 0, model, "tensor"), 4, 0.25) for model in (0, 1)]
    models = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    dropped = deltas_after("dare", models, drop_rate=0.75, seed=3)
    assert dropped == [
        [4 * x * keep for x, keep in zip(*pair, strict=True)] for pair in zip(models, masks, strict=True)
    ]
    assert 0 < sum(map(sum, masks)) < 8


def test_dropping_nothing_keeps_and_dropping_everything_clears() -> None:
    models = [[1.0, 2.0, 3.0, 4.0]]
    for rescale in (True, False, "l1"):
        assert deltas_after("dare", models, drop_rate=0, rescale=rescale) == models
        assert deltas_after("dare", models, drop_rate=1, rescale=rescale) == [[0, 0, 0, 0]]


def test_a_task_vector_of_zeros_survives_every_rescaling() -> None:
    for rescale in (True, False, "l1"):
        assert deltas_after("dare", [[0, 0, 0, 0]], drop_rate=0.5, rescale=rescale) == [[0, 0, 0, 0]]


def test_dare_before_ties_is_the_paper_s_combination() -> None:
    # Drop, rescale, then trim what is left, elect and average.
    inputs = smooth_tensors(0, 3, {"tensor": 300})["tensor"]
    step, method = find_step("dare"), find_method("ties")
    dropped = {
        **inputs,
        Input.DELTAS: run(step, params_for(step.params, 3, drop_rate=0.5), {"tensor": inputs}).tensors["tensor"],
    }
    params = params_for(method.params, 3, weight=(1, 1, 1), density=(0.2, 0.2, 0.2))
    result = run(method, params, {"tensor": dropped}).tensors["tensor"]
    masks = [oracle.keep_mask((0, 0, model, "tensor"), 300, 0.5) for model in range(3)]
    deltas = oracle.dare(inputs[Input.DELTAS].tolist(), masks, [0.5] * 3)
    expected = oracle.ties(
        {"tensor": inputs[Input.BASE].tolist()}, [{"tensor": delta} for delta in deltas], [1] * 3, [0.2] * 3
    )
    assert_close(result, expected["tensor"])


# --- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_vectors_too_long_to_be_held_have_the_same_thresholds(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = find_step("keep_largest")
    tensors = smooth_tensors(0, 2, {"first": 2 * GRAIN + 9, "second": 700})
    params = params_for(step.params, 2, density=0.3, scope=scope)
    held = run(step, params, tensors)
    monkeypatch.setattr(keep_largest, "_MOST_COLLECTED", 100)
    for setup in (Setup(cut=1), Setup(cut=1, shuffle=0), Setup(cut=1, shuffle=1)):
        long = run(step, params, tensors, setup)
        assert same_bits(held.tensors, long.tensors)
        assert held.measured == long.measured


def test_thresholds_are_those_of_sorting() -> None:
    method = find_method("ties")
    tensors = smooth_tensors(0, 2, {"first": 1000, "second": 500})
    density = (0.2, 0.7)
    for trim in ("tensor", "model"):
        params = params_for(method.params, 2, weight=(1, 1), density=density, trim=trim)
        found = measure(method, params, tensors)
        for name in tensors:
            vectors = tensors.values() if trim == "model" else [tensors[name]]
            for model in range(2):
                everything = [x for inputs in vectors for x in inputs[Input.DELTAS][model].tolist()]
                assert found[name][model] == oracle.threshold(everything, density[model])


def test_nothing_is_searched_where_everything_or_nothing_is_kept() -> None:
    method = find_method("ties")
    tensors = smooth_tensors(0, 2, {"first": 10})
    params = params_for(method.params, 2, weight=(1, 1), density=(1, 0))
    assert measure(method, params, tensors) == {"first": [0.0, math.inf]}


def small(numbers: list[float], seed: int) -> Block:
    rows = {Input.DELTAS: torch.tensor([numbers])}
    return Block(rows, Masks(seed, 0, "w", 1, 0, len(numbers)))


@pytest.mark.parametrize("density", [1e-6, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_leaves_a_single_entry_as_it_is(density: float, rescale: bool) -> None:
    for seed in range(20):
        params = DareParams(drop_rate=1 - density, rescale=rescale)
        assert dare(small([0.75], seed), params).tolist() == [[0.75]]


def test_dare_drops_a_single_entry_at_density_zero() -> None:
    assert dare(small([0.75], 0), DareParams(drop_rate=1)).tolist() == [[0.0]]


def test_dare_keeps_the_largest_of_a_small_tensor_of_which_all_would_be_dropped() -> None:
    # At a drop rate of 1 - 2^-20 each of three entries is kept once in 350,000 times.
    rate = 1 - 2.0**-20
    for seed in range(20):
        assert dare(small([0.5, -2.0, 2.0], seed), DareParams(drop_rate=rate, rescale=False)).tolist() == [[0, -2, 0]]


def test_dare_takes_a_kept_entry_that_is_zero_for_one_that_is_kept() -> None:
    kept = [oracle.keep_mask((seed, 0, 0, "w"), 2, 0.5) for seed in range(200)]
    seed = kept.index([1, 0])
    assert dare(small([0.0, 4.0], seed), DareParams(drop_rate=0.5)).tolist() == [[0.0, 0.0]]
