"""Identities that averaging, task arithmetic, Fisher averaging, TIES and DARE must satisfy, whatever the numbers are.

The order is that of the definitions: general ones, averaging and task arithmetic, Fisher, TIES, DARE.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_cli.methods import find_method, find_step
from merge_cli.methods.contract import Input
from merge_cli.testing import Setup, params_for, run
from tests import oracle
from tests.methods.support import Inputs, assert_close, bits, family, merged, merged_model, methods_with, stepped

TASK_VECTOR_METHODS = methods_with("lambda")
SEEDS = [0, 1, 2]


def random_family(seed: int, n: int = 3, numel: int = 60, **changes: Any) -> dict[Input, Tensor]:
    """Return a base, models near it, and positive Fisher diagonals."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=numel)
    inputs: dict[str, Any] = {
        "base": base,
        "models": base + 0.3 * rng.normal(size=(n, numel)),
        "fisher": rng.gamma(0.5, size=(n, numel)) + 1e-3,
    }
    return family(**{**inputs, **changes})


def rows(inputs: Inputs, need: Input = Input.MODELS) -> list[list[float]]:
    return inputs[need].double().tolist()


def equal_weights(n: int, value: float = 1.0) -> tuple[float, ...]:
    return (value,) * n


# --- general ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TASK_VECTOR_METHODS)
def test_scale_zero_returns_the_base_exactly(method: str) -> None:
    inputs = random_family(0)
    assert torch.equal(merged(method, inputs, weight=(1, 2, -1), scale=0), inputs[Input.BASE])


@pytest.mark.parametrize("method", TASK_VECTOR_METHODS)
@pytest.mark.parametrize("normalize", [True, False])
def test_models_that_are_the_base_return_it_exactly(method: str, normalize: bool) -> None:
    base = random_family(0)[Input.BASE]
    inputs = family(base=base, models=base.repeat(3, 1))
    assert torch.equal(merged(method, inputs, weight=(1, 2, -1), normalize=normalize), base)


@pytest.mark.parametrize("method", ["linear", "fisher"])
@pytest.mark.parametrize("weight", [(1, 1, 1), (0.2, 3, 0.7)])
def test_an_average_of_identical_models_is_that_model(method: str, weight: tuple[float, ...]) -> None:
    model = random_family(0)[Input.MODELS][0]
    inputs = random_family(1, models=model.repeat(3, 1))
    assert_close(merged(method, inputs, weight=weight), model)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "fisher"])
def test_the_order_of_the_models_does_not_matter(method: str) -> None:
    inputs = random_family(3)
    order = [2, 0, 1]
    reordered = {need: rows[order] if rows.dim() == 2 else rows for need, rows in inputs.items()}
    weight = (0.5, 1.0, 2.0)
    assert_close(
        merged(method, reordered, weight=tuple(weight[i] for i in order)), merged(method, inputs, weight=weight)
    )


@pytest.mark.parametrize("method", ["linear", "fisher"])
@pytest.mark.parametrize("seed", SEEDS)
def test_averages_lie_between_the_smallest_and_the_largest_model(method: str, seed: int) -> None:
    inputs = random_family(seed)
    result = merged(method, inputs, weight=(0.5, 1.0, 2.0))
    assert bool((result >= inputs[Input.MODELS].min(dim=0).values - 1e-6).all())
    assert bool((result <= inputs[Input.MODELS].max(dim=0).values + 1e-6).all())


@pytest.mark.parametrize("seed", SEEDS)
def test_ties_lies_between_the_smallest_and_the_largest_entry_that_agrees(seed: int) -> None:
    inputs = random_family(seed, base=np.zeros(60))
    result = merged("ties", inputs, weight=equal_weights(3), density=equal_weights(3, 0.5), zero_sum="none").tolist()
    deltas = rows(inputs, Input.DELTAS)
    kept = [list(delta["x"]) for delta in oracle.keep_largest([{"x": d} for d in deltas], [0.5] * 3, scope="tensor")]
    for j, value in enumerate(result):
        agreeing = [row[j] for row in kept if row[j] * value > 0]
        assert agreeing or value == 0
        if agreeing:
            assert min(agreeing) - 1e-6 <= value <= max(agreeing) + 1e-6


@pytest.mark.parametrize("method", ["linear", "fisher"])
def test_averages_do_not_read_the_base_and_shift_with_their_models(method: str) -> None:
    found = find_method(method)
    assert Input.BASE not in found.needs(params_for(found.params, 3, weight=(1, 2, 3)), frozenset(Input))
    inputs = random_family(0)
    shifted = {**inputs, Input.MODELS: inputs[Input.MODELS] + 5}
    assert_close(merged(method, shifted, weight=(1, 2, 3)), merged(method, inputs, weight=(1, 2, 3)) + 5)


def test_task_arithmetic_takes_the_base_with_one_minus_scale_times_the_sum_of_the_weights() -> None:
    inputs = random_family(0)
    moved = family(base=inputs[Input.BASE] + 1, models=inputs[Input.MODELS])
    weight, scale = (0.5, 1.0, -0.25), 0.8
    difference = merged("task_arithmetic", moved, weight=weight, scale=scale) - merged(
        "task_arithmetic", inputs, weight=weight, scale=scale
    )
    # 1 - 0.8 · 1.25 = 0
    assert_close(difference, torch.zeros(60))
    weight = (0.5, 1.0, 0.5)
    difference = merged("task_arithmetic", moved, weight=weight, scale=scale) - merged(
        "task_arithmetic", inputs, weight=weight, scale=scale
    )
    # 1 - 0.8 · 2 = -0.6
    assert_close(difference, torch.full((60,), -0.6))


# --- averaging and task arithmetic ------------------------------------------------------------------------------------


def test_averages_by_hand() -> None:
    inputs = family(models=[[1, 2, 3], [3, 6, -9]])
    assert merged("linear", inputs, weight=(1, 1)).tolist() == [2, 4, -3]
    assert merged("linear", inputs, weight=(3, 1)).tolist() == [1.5, 3, 0]
    assert merged("linear", inputs, weight=(3, 1), normalize=False).tolist() == [6, 12, 0]


def test_task_arithmetic_by_hand() -> None:
    inputs = family(base=[10, 10, 10], models=[[11, 12, 13], [14, 10, 8]])
    # Deltas 1 2 3 and 4 0 -2; 2 · 1 - 0.5 · 4 = 0 and so on, times 10.
    assert merged("task_arithmetic", inputs, weight=(2, -0.5), scale=10).tolist() == [10, 50, 80]
    # Divided by 2 + 2.
    assert merged("task_arithmetic", inputs, weight=(2, 2), normalize=True).tolist() == [12.5, 11, 10.5]


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear"])
@pytest.mark.parametrize("weight", [(1, -1), (0.1, 0.2, -0.3)])
def test_weights_that_cancel_are_not_divided_by(method: str, weight: tuple[float, ...]) -> None:
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point: divided by that, the merge would be noise of size 1e16.
    inputs = random_family(0, n=len(weight))
    assert_close(
        merged(method, inputs, weight=weight, normalize=True), merged(method, inputs, weight=weight, normalize=False)
    )


def test_task_arithmetic_with_scale_one_over_n_is_the_average() -> None:
    inputs = random_family(0, n=4)
    assert_close(
        merged("task_arithmetic", inputs, weight=equal_weights(4), scale=1 / 4),
        merged("linear", inputs, weight=equal_weights(4)),
    )


def test_task_arithmetic_of_one_model_is_that_model() -> None:
    inputs = random_family(0, n=1)
    assert_close(merged("task_arithmetic", inputs, weight=(1,)), inputs[Input.MODELS][0])


def test_task_arithmetic_is_linear_in_weights() -> None:
    inputs = random_family(0)
    first, second = (0.5, -1.0, 2.0), (1.5, 0.25, -1.0)
    both = tuple(a + b for a, b in zip(first, second, strict=True))
    assert_close(
        merged("task_arithmetic", inputs, weight=first)
        + merged("task_arithmetic", inputs, weight=second)
        - inputs[Input.BASE],
        merged("task_arithmetic", inputs, weight=both),
    )


def test_a_task_added_and_then_forgotten_leaves_the_base() -> None:
    inputs = random_family(0, n=1)
    learned = merged("task_arithmetic", inputs, weight=(0.7,))
    task = inputs[Input.DELTAS][0]
    forgotten = merged("task_arithmetic", family(base=learned, models=(learned + task)[None]), weight=(-0.7,))
    assert_close(forgotten, inputs[Input.BASE])


def test_an_analogy_with_equal_terms_is_the_third_task() -> None:
    # A is to B as C is to D: τ_C + (τ_B - τ_A), and A = B.
    inputs = random_family(0, n=2)
    same, other = inputs[Input.MODELS]
    analogy = merged(
        "task_arithmetic", family(base=inputs[Input.BASE], models=torch.stack([same, same, other])), weight=(-1, 1, 1)
    )
    assert_close(analogy, other)


@pytest.mark.parametrize("factor", [10.0, 0.01, -3.0])
def test_a_normalized_average_depends_on_ratios_of_weights_only(factor: float) -> None:
    inputs = random_family(0)
    weight = (0.2, 0.3, 0.9)
    scaled = tuple(factor * w for w in weight)
    assert_close(merged("linear", inputs, weight=scaled), merged("linear", inputs, weight=weight))


# --- Fisher -----------------------------------------------------------------------------------------------------------


def test_fisher_averaging_by_hand() -> None:
    # (3 · 2 + 1 · 10) / 4 = 4, and an element whose second Fisher is zero is the first model's but for the floor.
    inputs = family(models=[[2, 2], [10, 10]], fisher=[[3, 5], [1, 0]])
    result = merged("fisher", inputs, normalize_fisher=False, fisher_floor=0)
    assert result.tolist() == [4, 2]
    # Norms over the model: 5 and 5. Weighted 1 to 3: (1 · 3/5 · 2 + 3 · 4/5 · 10) / (3/5 + 12/5) = 8.4.
    inputs = family(models=[[2, 2], [10, 10]], fisher=[[3, 4], [4, 3]])
    assert_close(merged("fisher", inputs, weight=(1, 3)), [8.4, (4 * 2 + 9 * 10) / 13])


def test_the_floor_is_relative_to_the_mean_of_a_model_s_fisher() -> None:
    # Means 4 and 1, floor half of them: 2 for the first and 1/2 for the second model.
    inputs = family(models=[[0, 0], [1, 1]], fisher=[[0, 8], [2, 0]])
    result = merged("fisher", inputs, normalize_fisher=False, fisher_floor=0.5)
    assert_close(result, [2 / (2 + 2), 0.5 / (8 + 0.5)])


def test_mean_and_norm_are_taken_over_the_whole_model() -> None:
    # Norms over both tensors: 5 and 13, so the first tensor is merged by 3/5 and 5/13.
    tensors = {
        "a": family(models=[[0], [1]], fisher=[[3], [5]]),
        "b": family(models=[[0], [1]], fisher=[[4], [12]]),
    }
    result = merged_model("fisher", tensors, fisher_floor=0)
    assert_close(result["a"], [(5 / 13) / (3 / 5 + 5 / 13)])
    assert_close(result["b"], [(12 / 13) / (4 / 5 + 12 / 13)])


def test_the_base_takes_part_with_weight_one_where_it_is_asked_to() -> None:
    # (2 · 3 · 10 + 1 · 2 · 0) / (2 · 3 + 2) = 7.5
    inputs = family(base=[0], models=[[10]], fisher=[[3]], base_fisher=[2])
    assert_close(merged("fisher", inputs, weight=(2,), include_base=True, normalize_fisher=False), [7.5])
    assert_close(merged("fisher", inputs, weight=(2,)), [10])


@pytest.mark.parametrize("normalize_fisher", [True, False])
def test_equal_fishers_give_the_weighted_average(normalize_fisher: bool) -> None:
    inputs = random_family(0)
    same = {**inputs, Input.FISHER: inputs[Input.FISHER][:1].repeat(3, 1)}
    ones = {**inputs, Input.FISHER: torch.ones(3, 60)}
    average = merged("linear", inputs, weight=(1, 2, 4))
    assert_close(merged("fisher", same, weight=(1, 2, 4), normalize_fisher=normalize_fisher), average)
    assert_close(merged("fisher", ones, weight=(1, 2, 4), normalize_fisher=normalize_fisher), average)


@pytest.mark.parametrize("factor", [1e-9, 1e9])
@pytest.mark.parametrize("normalize_fisher", [True, False])
def test_a_factor_common_to_all_fishers_or_all_weights_cancels(factor: float, normalize_fisher: bool) -> None:
    inputs = random_family(0)
    options = {"normalize_fisher": normalize_fisher}
    expected = merged("fisher", inputs, weight=(1, 2, 4), **options)
    scaled = {**inputs, Input.FISHER: inputs[Input.FISHER] * factor}
    assert_close(merged("fisher", scaled, weight=(1, 2, 4), **options), expected)
    assert_close(merged("fisher", inputs, weight=(factor, 2 * factor, 4 * factor), **options), expected)


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_a_factor_of_one_fisher_cancels_with_normalisation_only(factor: float) -> None:
    inputs = random_family(0)
    scaled = {**inputs, Input.FISHER: inputs[Input.FISHER] * torch.tensor([[factor], [1], [1]])}
    assert_close(merged("fisher", scaled), merged("fisher", inputs))
    plain = merged("fisher", inputs, normalize_fisher=False)
    assert not torch.allclose(merged("fisher", scaled, normalize_fisher=False), plain, atol=0.01)


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_a_fisher_that_dominates_returns_its_model(winner: int) -> None:
    inputs = random_family(0)
    factors = torch.tensor([[1e12] if i == winner else [1.0] for i in range(3)])
    result = merged("fisher", {**inputs, Input.FISHER: inputs[Input.FISHER] * factors}, normalize_fisher=False)
    assert_close(result, inputs[Input.MODELS][winner], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("favour", [0, 1, 2])
@pytest.mark.parametrize("normalize_fisher", [True, False])
def test_where_every_fisher_is_zero_the_favoured_model_is_returned_exactly(favour: int, normalize_fisher: bool) -> None:
    inputs = random_family(0)
    inputs[Input.FISHER][:, 10:20] = 0
    result = merged("fisher", inputs, favour=favour, normalize_fisher=normalize_fisher)
    assert torch.equal(result[10:20], inputs[Input.MODELS][favour][10:20])
    nothing = {**inputs, Input.FISHER: torch.zeros(3, 60)}
    assert torch.equal(
        merged("fisher", nothing, favour=favour, normalize_fisher=normalize_fisher), inputs[Input.MODELS][favour]
    )


def test_where_every_fisher_is_zero_and_nobody_is_favoured_the_weighted_mean_is_returned() -> None:
    inputs = family(models=[[0, 0], [8, 8]], fisher=[[0, 1], [0, 1]])
    assert_close(merged("fisher", inputs, weight=(1, 3), favour="none"), [6, 6])


def test_elements_without_any_fisher_are_counted() -> None:
    method = find_method("fisher")
    inputs = {"a": family(models=[[0, 0, 0], [8, 8, 8]], fisher=[[0, 1, 0], [0, 0, 0]])}
    assert run(method, params_for(method.params, 2), inputs).counts == {"no_fisher": 2}
    inputs = {"a": family(models=[[0], [8]], fisher=[[1], [0]])}
    assert run(method, params_for(method.params, 2), inputs).counts == {}


@pytest.mark.parametrize("fisher_floor", [0.0, 1e-6])
@pytest.mark.parametrize("normalize_fisher", [True, False])
@pytest.mark.parametrize("weight", [(0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize(
    "fisher",
    [
        [[1, 1, 0], [0, 0, 0]],  # the second was never measured
        [[0, 0, 0], [1, 1, 0]],
        [[0, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [0, 1, 0]],
    ],
)
def test_no_zero_is_ever_divided_by(
    fisher: list[list[float]], weight: tuple[float, float], normalize_fisher: bool, fisher_floor: float
) -> None:
    inputs = family(models=[[2, 2, 2], [4, 4, 4]], fisher=fisher)
    result = merged(
        "fisher", inputs, weight=weight, normalize_fisher=normalize_fisher, fisher_floor=fisher_floor, favour=0
    )
    assert bool(torch.isfinite(result).all())
    expected = oracle.fisher(
        [{"x": [2, 2, 2]}, {"x": [4, 4, 4]}],
        [{"x": row} for row in fisher],
        weight,
        normalize_fisher=normalize_fisher,
        fisher_floor=fisher_floor,
    )
    assert_close(result, expected["x"])


@pytest.mark.parametrize("normalize_fisher", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e-12])
def test_a_model_whose_fisher_is_zero_everywhere_has_no_say_where_another_was_measured(
    normalize_fisher: bool, size: float
) -> None:
    inputs = family(models=[[1, 2, 3], [7, 8, 9]], fisher=[[size, 2 * size, size], [0, 0, 0]])
    assert merged("fisher", inputs, normalize_fisher=normalize_fisher).tolist() == [1, 2, 3]


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_one_weight_alone_returns_its_model_wherever_its_floored_fisher_is_positive(chosen: int) -> None:
    inputs = random_family(0)
    inputs[Input.FISHER][chosen, :5] = 0  # floored, as another model has some there
    weight = tuple(float(i == chosen) for i in range(3))
    assert_close(merged("fisher", inputs, weight=weight), inputs[Input.MODELS][chosen])


def regression(seed: int, *, orthogonal: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return two designs of 30 examples and 5 inputs, uncorrelated or not, and their targets."""
    rng = np.random.default_rng(seed)
    designs = []
    for _ in range(2):
        design = rng.normal(size=(30, 5))
        if orthogonal:
            design = np.linalg.qr(design)[0] * rng.uniform(1, 3, size=5)
        designs.append(design)
    return designs, [rng.normal(size=30) for _ in range(2)]


def fisher_of_regressions(designs: list[np.ndarray], targets: list[np.ndarray]) -> tuple[Tensor, np.ndarray]:
    """Return the Fisher average of two least-squares fits, and the fit to all examples together."""
    fits = [np.linalg.lstsq(x, y, rcond=None)[0] for x, y in zip(designs, targets, strict=True)]
    inputs = family(models=np.stack(fits), fisher=np.stack([(x * x).mean(axis=0) for x in designs]))
    pooled = np.linalg.lstsq(np.vstack(designs), np.concatenate(targets), rcond=None)[0]
    # As many examples in both, so the mean Fishers are on the same scale.
    return merged("fisher", inputs, normalize_fisher=False, fisher_floor=0), pooled


@pytest.mark.parametrize("seed", SEEDS)
def test_for_uncorrelated_inputs_fisher_averaging_of_regressions_is_the_fit_to_all_data(seed: int) -> None:
    result, pooled = fisher_of_regressions(*regression(seed, orthogonal=True))
    assert_close(result, pooled)


@pytest.mark.parametrize("seed", SEEDS)
def test_for_correlated_inputs_the_diagonal_is_not_enough(seed: int) -> None:
    designs, targets = regression(seed, orthogonal=False)
    result, pooled = fisher_of_regressions(designs, targets)
    assert float((result.double() - torch.tensor(pooled)).abs().max()) > 0.005
    # With full matrices it would be.
    grams = [x.T @ x for x in designs]
    fits = [np.linalg.lstsq(x, y, rcond=None)[0] for x, y in zip(designs, targets, strict=True)]
    full = np.linalg.solve(sum(grams), sum(g @ fit for g, fit in zip(grams, fits, strict=True)))
    assert np.allclose(full, pooled)


# --- TIES -------------------------------------------------------------------------------------------------------------

PAPER = {"zero_sum": "none", "trim": "model"}


def top(delta: Tensor, density: float) -> Tensor:
    kept = oracle.keep_largest([{"x": delta.tolist()}], [density], scope="tensor")[0]["x"]
    return torch.tensor(kept)


def ties_vector(inputs: Inputs, **values: Any) -> Tensor:
    """Return the merged task vector alone: TIES on a base of zeros, where nothing is rounded away."""
    n = len(inputs[Input.DELTAS])
    bare = {**inputs, Input.BASE: torch.zeros_like(inputs[Input.BASE])}
    density = equal_weights(n, values.pop("k", 1.0))
    return merged("ties", bare, weight=values.pop("weight", equal_weights(n)), density=density, **PAPER, **values)


def test_ties_by_hand() -> None:
    # Keep 2 of 4: first 4 and -3, second -2 and 2 (both at the threshold), third -6 and 5.
    inputs = family(base=[0] * 4, models=[[4, 1, -3, 0.5], [-2, 0.5, 2, 1], [1, 5, -6, 2]])
    result = merged("ties", inputs, weight=(1, 1, 1), density=(0.5, 0.5, 0.5))
    # Sums 2, 5, -7, 0: elected + + - and, for no entry at all, +. Means 4; 5; (-3 - 6) / 2; 0.
    assert result.tolist() == [4, 5, -4.5, 0]
    assert merged("ties", inputs, weight=(1, 1, 1), density=(0.5, 0.5, 0.5), normalize=False).tolist() == [4, 5, -9, 0]


def test_ties_weights_enter_before_the_election_and_divide_the_result() -> None:
    # Weighted 3 · 1 and 1 · -2: + is elected, and 3 / 3 is the delta itself.
    inputs = family(base=[10], models=[[11], [8]])
    assert merged("ties", inputs, weight=(3, 1)).tolist() == [11]
    assert merged("ties", inputs, weight=(1, 1)).tolist() == [8]
    # Where both agree the mean is weighted: (3 · 1 + 1 · 5) / 4 = 2.
    inputs = family(base=[10], models=[[11], [15]])
    assert merged("ties", inputs, weight=(3, 1)).tolist() == [12]


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_of_one_model_adds_its_largest_entries(density: float) -> None:
    inputs = random_family(0, n=1)
    result = merged("ties", inputs, weight=(1,), density=(density,), scale=0.7)
    assert_close(result, inputs[Input.BASE] + 0.7 * top(inputs[Input.DELTAS][0], density))


def test_ties_of_one_whole_model_is_task_arithmetic() -> None:
    inputs = random_family(0, n=1)
    assert_close(
        merged("ties", inputs, weight=(1,), scale=0.7), merged("task_arithmetic", inputs, weight=(1,), scale=0.7)
    )


def test_ties_without_trimming_or_conflict_is_task_arithmetic() -> None:
    inputs = random_family(0)
    inputs = family(base=inputs[Input.BASE], models=inputs[Input.BASE] + inputs[Input.DELTAS].abs())
    weight = equal_weights(3)
    mean, total = (merged("task_arithmetic", inputs, weight=weight, scale=scale) for scale in (0.9 / 3, 0.9))
    assert_close(merged("ties", inputs, weight=weight, scale=0.9), mean)
    assert_close(merged("ties", inputs, weight=weight, scale=0.9, normalize=False), total)


@pytest.mark.parametrize("n", [2, 5])
def test_ties_of_identical_models_is_one_of_them_trimmed(n: int) -> None:
    base, delta = random_family(0, n=1)[Input.BASE], random_family(0, n=1)[Input.DELTAS][0]
    inputs = family(base=base, models=(base + delta).repeat(n, 1))
    kept = top(inputs[Input.DELTAS][0], 0.3)
    assert_close(ties_vector(inputs, k=0.3), kept)
    assert_close(ties_vector(inputs, k=0.3, normalize=False), n * kept)


def test_ties_of_two_models_decides_each_element_by_itself() -> None:
    # Trimming to 3 of 4 drops the fourth entry of the first model and the first of the second.
    #         agree          disagree        one trimmed    one trimmed    opposite
    deltas = [[2.0, 4.0, -5.0, 0.5], [0.5, 6.0, 3.0, -1.0]]
    inputs = family(base=[0] * 4, models=deltas)
    assert ties_vector(inputs, k=0.75).tolist() == [2.0, 5.0, -5.0, -1.0]
    assert ties_vector(family(base=[0], models=[[3.0], [-3.0]])).tolist() == [0.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_ties_is_nowhere_smaller_than_the_mean_of_the_trimmed_task_vectors(seed: int) -> None:
    inputs = random_family(seed, base=np.zeros(60))
    trimmed = torch.stack([top(delta, 0.5) for delta in inputs[Input.DELTAS]])
    result, mean = ties_vector(inputs, k=0.5), trimmed.mean(dim=0)
    assert bool((result.abs() >= mean.abs() - 1e-7).all())
    elected = trimmed.sum(dim=0).sign()
    strict = (elected != 0) & ~(trimmed.sign() == elected).all(dim=0)
    assert bool((result.abs() > mean.abs())[strict].all())
    assert int(strict.sum()) > 10


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_ties_is_odd_and_homogeneous(seed: int, normalize: bool) -> None:
    inputs = random_family(seed)

    def of(factor: float) -> Tensor:
        deltas = {**inputs, Input.DELTAS: factor * inputs[Input.DELTAS]}
        return ties_vector(deltas, k=0.4, normalize=normalize)

    assert torch.equal(of(-1), -of(1))
    assert torch.equal(of(4), 4 * of(1))


def test_electing_plus_for_zero_sums_breaks_oddness_at_exact_cancellations_only() -> None:
    inputs = family(base=[0, 0], models=[[2.0, 1.0], [-2.0, 1.0]])
    opposite = family(base=[0, 0], models=[[-2.0, -1.0], [2.0, -1.0]])
    assert merged("ties", inputs, weight=(1, 1), zero_sum="plus").tolist() == [2.0, 1.0]
    assert merged("ties", opposite, weight=(1, 1), zero_sum="plus").tolist() == [2.0, -1.0]
    assert merged("ties", inputs, weight=(1, 1), zero_sum="none").tolist() == [0.0, 1.0]
    assert merged("ties", opposite, weight=(1, 1), zero_sum="none").tolist() == [0.0, -1.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_ties_has_the_elected_sign_wherever_one_is_elected(seed: int) -> None:
    inputs = random_family(seed)
    trimmed = torch.stack([top(delta, 0.3) for delta in inputs[Input.DELTAS]])
    result = ties_vector(inputs, k=0.3)
    assert torch.equal(result.sign(), trimmed.sum(dim=0).sign())
    # It is zero wherever all were trimmed.
    assert bool((result[(trimmed == 0).all(dim=0)] == 0).all())


def test_trimming_what_is_trimmed_changes_nothing() -> None:
    inputs = random_family(0)
    once = stepped("keep_largest", inputs, density=0.3)
    twice = stepped("keep_largest", once, density=0.3)
    assert torch.equal(once[Input.DELTAS], twice[Input.DELTAS])


@pytest.mark.parametrize("numel", [1, 7, 100, 999])
@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999, 1.0])
def test_as_many_entries_are_kept_as_the_whole_part_of_the_density(numel: int, density: float) -> None:
    # The authors' code keeps one more.
    delta = torch.randperm(numel, generator=torch.Generator().manual_seed(0)).float() + 1
    result = ties_vector(family(base=[0] * numel, models=delta[None]), k=density)
    assert int((result != 0).sum()) == max(1, math.floor(density * numel))


def test_every_entry_at_the_threshold_is_kept() -> None:
    inputs = family(base=[0] * 5, models=[[1, -1, 1, 2, 0]])
    assert ties_vector(inputs, k=0.4).tolist() == [1, -1, 1, 2, 0]


TWO_TENSORS = {
    "large": family(base=[0] * 4, models=[[10, -20, 30, 40]]),
    "small": family(base=[0] * 4, models=[[1, -2, 3, 4]]),
}


def test_trimming_over_the_model_favours_tensors_that_moved_most() -> None:
    both = {"weight": (1,), "density": (0.5,)}
    whole = merged_model("ties", TWO_TENSORS, **both, trim="model")
    assert whole["large"].tolist() == [10, -20, 30, 40]
    assert whole["small"].tolist() == [0, 0, 0, 0]
    each = merged_model("ties", TWO_TENSORS, **both, trim="tensor")
    assert each["large"].tolist() == [0, 0, 30, 40]
    assert each["small"].tolist() == [0, 0, 3, 4]


def test_trimming_over_the_model_counts_for_each_model_by_itself() -> None:
    tensors = {
        "a": family(base=[0, 0], models=[[9, 8], [1, 2]]),
        "b": family(base=[0, 0], models=[[7, 6], [30, 40]]),
    }
    result = merged_model("ties", tensors, weight=(1, 1), density=(0.5, 0.5), trim="model")
    # The first model keeps its first tensor, the second its second.
    assert result["a"].tolist() == [9, 8]
    assert result["b"].tolist() == [30, 40]


def test_trimming_over_one_tensor_or_the_model_is_the_same_where_there_is_one_tensor() -> None:
    inputs = random_family(0)
    for density in (0.2, 0.7):
        values = {"weight": equal_weights(3), "density": equal_weights(3, density)}
        assert torch.equal(merged("ties", inputs, **values, trim="model"), merged("ties", inputs, **values))


def test_names_and_order_of_tensors_change_nothing() -> None:
    inputs = random_family(0)
    cut = {
        name: {need: values[..., part] for need, values in inputs.items()}
        for name, part in (("a", slice(0, 20)), ("b", slice(20, 60)))
    }
    renamed = {"z": cut["b"], "y": cut["a"]}
    for trim in ("tensor", "model"):
        values = {"weight": equal_weights(3), "density": equal_weights(3, 0.3), "trim": trim}
        before, after = merged_model("ties", cut, **values), merged_model("ties", renamed, **values)
        assert torch.equal(before["a"], after["y"])
        assert torch.equal(before["b"], after["z"])


def test_splitting_a_tensor_changes_what_is_trimmed_per_tensor_and_not_over_the_model() -> None:
    inputs = family(base=[0] * 8, models=[[10, -20, 30, 40, 1, -2, 3, 4]])
    values = {"weight": (1,), "density": (0.5,)}
    whole, split = (
        merged("ties", inputs, **values, trim="model"),
        merged_model("ties", TWO_TENSORS, **values, trim="model"),
    )
    assert torch.equal(whole, torch.cat([split["large"], split["small"]]))
    whole, split = merged("ties", inputs, **values), merged_model("ties", TWO_TENSORS, **values)
    assert not torch.equal(whole, torch.cat([split["large"], split["small"]]))


# --- DARE -------------------------------------------------------------------------------------------------------------


def test_dare_without_dropping_changes_no_bit() -> None:
    inputs = random_family(0)
    assert bits(stepped("dare", inputs, drop_rate=0)[Input.DELTAS]) == bits(inputs[Input.DELTAS])
    for rescale in (True, False, "l1"):
        values = {"weight": (1, 2, -1), "scale": 0.7}
        dropped = merged("dare_linear", inputs, density=(1, 1, 1), rescale=rescale, **values)
        assert bits(dropped) == bits(merged("task_arithmetic", inputs, **values))
        dropped = merged("dare_ties", inputs, density=(1, 1, 1), rescale=rescale, **values)
        assert bits(dropped) == bits(merged("ties", inputs, normalize=False, **values))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [True, False, "l1"])
@pytest.mark.parametrize("normalize", [True, False])
def test_dare_that_drops_everything_returns_the_base(method: str, rescale: bool | str, normalize: bool) -> None:
    inputs = random_family(0)
    result = merged(method, inputs, weight=(1, 2, 3), density=(0, 0, 0), rescale=rescale, normalize=normalize)
    assert bits(result) == bits(inputs[Input.BASE])


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.9, 0.99])
def test_survivors_of_dare_are_divided_by_the_probability_of_keeping_to_one_unit_in_the_last_place(
    drop_rate: float,
) -> None:
    inputs = random_family(0, n=1, numel=2000)
    delta, dropped = inputs[Input.DELTAS][0], stepped("dare", inputs, drop_rate=drop_rate)[Input.DELTAS][0]
    kept = dropped != 0
    assert 0 < int(kept.sum()) < 2000
    exact = (delta.double() / (1 - drop_rate)).float()
    steps = dropped[kept].view(torch.int32) - exact[kept].view(torch.int32)
    assert int(steps.abs().max()) <= 1


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_the_base_is_bit_identical_where_dare_drops(method: str) -> None:
    inputs = random_family(0, n=1)
    result = merged(method, inputs, weight=(1,), density=(0.4,))
    dropped = torch.tensor(oracle.keep_mask((0, 0, 0, "tensor"), 60, 0.4)) == 0
    assert 20 < int(dropped.sum()) < 50
    assert bits(result[dropped]) == bits(inputs[Input.BASE][dropped])
    assert bool((result != inputs[Input.BASE])[~dropped].all())


def kept_by(drop_rate: float, *, seed: int = 0, name: str = "tensor", models: int = 1, numel: int = 40_000) -> Tensor:
    """Return ones where the step keeps an entry, one row per model."""
    step = find_step("dare")
    inputs = {name: family(base=torch.zeros(numel), models=torch.ones(models, numel))}
    params = params_for(step.params, models, drop_rate=drop_rate, rescale=False)
    return run(step, params, inputs, Setup(seed=seed)).tensors[name]


def sigmas(ones: Tensor, probability: float) -> float:
    return abs(float(ones.mean()) - probability) / math.sqrt(probability * (1 - probability) / ones.numel())


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.9, 0.99])
def test_dare_keeps_its_share_within_four_standard_deviations(drop_rate: float) -> None:
    assert sigmas(kept_by(drop_rate), 1 - drop_rate) < 4


def test_dare_masks_are_the_same_for_the_same_seed_model_and_tensor_and_independent_for_others() -> None:
    first, second = kept_by(0.6, models=2)
    assert torch.equal(first, kept_by(0.6)[0])
    assert torch.equal(second, kept_by(0.6, models=3)[1])
    for other in (second, kept_by(0.6, seed=1)[0], kept_by(0.6, name="another")[0]):
        assert sigmas(first * other, 0.4**2) < 4


def repeated(method: str, inputs: Inputs, count: int, **values: Any) -> Tensor:
    """Return the merges of one tensor under many seeds, shape ``(count, numel)``."""
    return torch.stack([merged(method, inputs, seed=seed, **values) for seed in range(count)]).double()


def test_the_mean_of_dare_over_seeds_approaches_the_task_vector_at_the_predicted_rate() -> None:
    drop_rate, count = 0.6, 150
    inputs = random_family(0, n=1, numel=800, base=np.zeros(800))
    delta = inputs[Input.DELTAS][0].double()
    drawn = repeated("dare_linear", inputs, count, weight=(1,), density=(1 - drop_rate,))
    error = float((drawn.mean(dim=0) - delta).norm() / delta.norm())
    assert error == pytest.approx(math.sqrt(drop_rate / ((1 - drop_rate) * count)), rel=0.15)
    ratio = drawn.var(dim=0) / (drop_rate / (1 - drop_rate) * delta**2)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_rescaling_is_the_same_as_a_larger_scale_with_the_same_mask(method: str) -> None:
    inputs = random_family(0)
    values = {"weight": (1, 2, -1), "density": (0.4, 0.4, 0.4)}
    assert_close(
        merged(method, inputs, scale=0.6, **values), merged(method, inputs, scale=0.6 / 0.4, rescale=False, **values)
    )


@pytest.mark.parametrize("scale", [0.8, 1 / 3])
def test_dare_with_task_arithmetic_or_averaging_has_no_bias(scale: float) -> None:
    # With scale 1/3 the three task vectors are averaged.
    count, numel, density = 100, 600, 0.5
    inputs = random_family(0, numel=numel, base=np.zeros(numel))
    expected = merged("task_arithmetic", inputs, weight=(1, 1, 1), scale=scale).double()
    drawn = repeated("dare_linear", inputs, count, weight=(1, 1, 1), density=equal_weights(3, density), scale=scale)
    variance = scale**2 * (1 - density) / density * inputs[Input.DELTAS].double().square().sum(dim=0)
    scores = (drawn.mean(dim=0) - expected) / (variance / count).sqrt()
    # Standard normal, all of them: squares average to one, and the mean to zero.
    assert float(scores.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / numel))
    assert abs(float(scores.mean())) < 4 / math.sqrt(numel)


def test_trimming_after_dare_is_a_no_op_where_fewer_are_left_than_would_be_kept() -> None:
    inputs = random_family(0, numel=2000)
    keep = equal_weights(3, 0.3)
    few = stepped("dare", inputs, drop_rate=0.8)
    assert torch.equal(
        merged("ties", few, weight=(1, 1, 1), density=keep), merged("ties", few, weight=(1, 1, 1), density=(1, 1, 1))
    )
    many = stepped("dare", inputs, drop_rate=0.5)
    assert not torch.equal(
        merged("ties", many, weight=(1, 1, 1), density=keep), merged("ties", many, weight=(1, 1, 1), density=(1, 1, 1))
    )


@pytest.mark.parametrize(("drop_rate", "factor"), [(0.5, 1.75), (0.9, 2.71)])
def test_dare_before_ties_inflates_agreeing_task_vectors_by_a_geometric_sum(drop_rate: float, factor: float) -> None:
    # 1 + p + p² for three models: 1.75 at p = 1/2 and 2.71 at p = 0.9.
    numel = 60_000
    inputs = family(base=torch.zeros(numel), models=torch.tensor([[1.0], [2.0], [3.0]]).repeat(1, numel))
    dropped = stepped("dare", inputs, drop_rate=drop_rate)
    result = merged("ties", dropped, weight=(1, 1, 1))
    assert float(result.mean()) == pytest.approx(2 * factor, rel=0.03)
    # Not so in dare_ties, which sums: three agreeing task vectors make 1 + 2 + 3 on average.
    summed = merged("dare_ties", inputs, weight=(1, 1, 1), density=equal_weights(3, 1 - drop_rate))
    assert float(summed.mean()) == pytest.approx(6, rel=0.03)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_rescaling_by_the_l1_norm_keeps_it_for_every_tensor(density: float) -> None:
    tensors = {
        name: random_family(seed, n=1, base=np.zeros(numel), numel=numel)
        for seed, (name, numel) in enumerate([("a", 300), ("b", 50)])
    }
    result = merged_model("dare_linear", tensors, weight=(1,), density=(density,), rescale="l1")
    for name, inputs in tensors.items():
        assert_close(result[name].abs().sum(), inputs[Input.DELTAS].abs().sum())
        kept = torch.tensor(oracle.keep_mask((0, 0, 0, name), len(result[name]), density))
        assert torch.equal((result[name] != 0).int(), kept.int())


def test_rescaling_by_the_l1_norm_by_hand() -> None:
    # With this seed the first of the two entries survives: 1 of 4 in all, so it is multiplied by 4.
    seed = next(seed for seed in range(100) if oracle.keep_mask((seed, 0, 0, "tensor"), 2, 0.5) == [1, 0])
    inputs = family(base=[10, 10], models=[[11, 13]])
    result = merged("dare_linear", inputs, seed=seed, weight=(1,), density=(0.5,), rescale="l1")
    assert result.tolist() == [14, 10]
    assert merged("dare_linear", inputs, seed=seed, weight=(1,), density=(0.5,)).tolist() == [12, 10]
    assert merged("dare_linear", inputs, seed=seed, weight=(1,), density=(0.5,), rescale=False).tolist() == [11, 10]
