"""Gradient matching against really solved regressions, its special cases, and what it must be invariant to.

Losses are sums of squared errors, so Hessians are Gram matrices and every optimum is the solution of a linear system,
found here in float64. A diagonal method is exact where Gram matrices are diagonal: orthogonal designs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from merge_cli.methods import find_method
from merge_cli.methods.contract import Block, Input, Masks
from merge_cli.testing import Outcome, params_for, run, typical_params
from tests.methods.support import assert_close, family, merged, smooth_tensors

Array = np.ndarray
SEEDS = [0, 1, 2]
ALPHAS = [(1.0, 1.0, 1.0), (0.5, 0.25, 2.0), (1 / 3, 1 / 3, 1 / 3)]


def match(
    base: Any,
    models: Any,
    curvature: Any,
    weight: tuple[float, ...],
    *,
    base_curvature: Any = None,
    gradients: Any = None,
    **values: Any,
) -> Array:
    """Merge one tensor by gradient matching as in the paper: nothing is floored, added or guessed."""
    exact = {"prior_precision": 0.0, "curvature_floor": 0.0, "anchor": "base"}
    inputs = family(base=base, models=models, curvature=curvature, base_curvature=base_curvature, gradients=gradients)
    return merged("gradient_matching", inputs, weight=weight, **{**exact, **values}).double().numpy()


@dataclass(frozen=True)
class Data:
    """The examples of one task; its loss is half the sum of squared errors."""

    x: Array
    y: Array

    @property
    def gram(self) -> Array:
        return self.x.T @ self.x

    @property
    def moment(self) -> Array:
        return self.x.T @ self.y

    def gradient(self, theta: Array) -> Array:
        return self.gram @ theta - self.moment


def solve(precision: Array, moment: Array) -> Array:
    """Return where the gradient of the quadratic objective vanishes."""
    return np.linalg.solve(precision, moment)


def data(seed: int, count: int, *, inputs: int = 6, orthogonal: bool = True) -> list[Data]:
    """Return several tasks; ``orthogonal`` makes the columns of each design so, with lengths of their own."""
    rng = np.random.default_rng(seed)
    tasks = []
    for _ in range(count):
        x = rng.normal(size=(25, inputs))
        if orthogonal:
            x = np.linalg.qr(x)[0] * rng.uniform(0.5, 3, size=inputs)
        tasks.append(Data(x, x @ rng.normal(size=inputs) + rng.normal(size=25)))
    return tasks


@dataclass(frozen=True)
class Ridge:
    """A base fitted to its own data with a prior, and models fine-tuned from it on theirs."""

    prior: float
    base_data: Data
    tasks: list[Data]

    @property
    def base_precision(self) -> Array:
        return self.base_data.gram + self.prior * np.eye(len(self.base_data.moment))

    @property
    def base(self) -> Array:
        return solve(self.base_precision, self.base_data.moment)

    def fine_tuned(self, task: Data) -> Array:
        """Minimise the task's loss plus half the squared distance to the base, in the base's precision."""
        return solve(self.base_precision + task.gram, self.base_precision @ self.base + task.moment)

    def joint(self, alpha: tuple[float, ...]) -> Array:
        """Fit to all data together, each task's loss weighted."""
        precision, moment = self.base_precision, self.base_data.moment
        for weight, task in zip(alpha, self.tasks, strict=True):
            precision, moment = precision + weight * task.gram, moment + weight * task.moment
        return solve(precision, moment)

    def matched(self, alpha: tuple[float, ...], models: Any = None, **values: Any) -> Array:
        """Merge with the diagonals of the Gram matrices."""
        models = [self.fine_tuned(task) for task in self.tasks] if models is None else models
        return match(
            self.base,
            np.stack(models),
            np.stack([np.diag(task.gram) for task in self.tasks]),
            alpha,
            base_curvature=np.diag(self.base_data.gram),
            prior_precision=self.prior,
            **values,
        )


def ridge(seed: int, *, orthogonal: bool = True, prior: float = 0.7) -> Ridge:
    first, *others = data(seed, 4, orthogonal=orthogonal)
    return Ridge(prior, first, others)


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_orthogonal_designs_are_merged_into_the_joint_ridge_fit(seed: int, alpha: tuple[float, ...]) -> None:
    problem = ridge(seed)
    assert_close(problem.matched(alpha), problem.joint(alpha))


@pytest.mark.parametrize("seed", SEEDS)
def test_correlated_designs_are_not_although_full_matrices_would_be(seed: int) -> None:
    problem, alpha = ridge(seed, orthogonal=False), (0.5, 0.25, 2.0)
    joint = problem.joint(alpha)
    assert np.abs(problem.matched(alpha) - joint).max() > 0.01
    h0 = problem.base_precision
    total = h0 + sum(weight * task.gram for weight, task in zip(alpha, problem.tasks, strict=True))
    pull = sum(
        weight * (h0 + task.gram) @ (problem.fine_tuned(task) - problem.base)
        for weight, task in zip(alpha, problem.tasks, strict=True)
    )
    np.testing.assert_allclose(problem.base + solve(total, pull), joint, rtol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_gram_matrices_with_common_eigenvectors_are_merged_exactly_in_their_basis(seed: int) -> None:
    # The designs are correlated in the coordinates of the data and orthogonal in the rotated ones.
    rotation = np.linalg.qr(np.random.default_rng(99).normal(size=(6, 6)))[0]
    straight = ridge(seed)
    turned = Ridge(
        straight.prior,
        Data(straight.base_data.x @ rotation.T, straight.base_data.y),
        [Data(task.x @ rotation.T, task.y) for task in straight.tasks],
    )
    alpha = (0.5, 0.25, 2.0)
    models = [turned.fine_tuned(task) @ rotation for task in turned.tasks]
    merged_here = straight.matched(alpha, models)
    assert_close(rotation @ merged_here, turned.joint(alpha))
    assert np.abs(turned.matched(alpha) - turned.joint(alpha)).max() > 0.01


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_measured_gradients_make_any_models_merge_into_the_joint_fit(seed: int, alpha: tuple[float, ...]) -> None:
    # Stopped early, overshot, never started: wherever fine-tuning ended, the loss is quadratic.
    problem = ridge(seed)
    rng = np.random.default_rng(seed)
    models = [problem.base + rng.normal(size=6) for _ in problem.tasks]
    gradients = np.stack([task.gradient(model) for task, model in zip(problem.tasks, models, strict=True)])
    assert_close(problem.matched(alpha, models, anchor="measured", gradients=gradients), problem.joint(alpha))


@pytest.mark.parametrize("seed", SEEDS)
def test_models_trained_to_their_own_optimum_need_the_anchor_none(seed: int) -> None:
    problem, alpha = ridge(seed), (0.5, 0.25, 2.0)
    models = [solve(task.gram, task.moment) for task in problem.tasks]
    assert_close(problem.matched(alpha, models, anchor="none"), problem.joint(alpha))
    assert np.abs(problem.matched(alpha, models, anchor="base") - problem.joint(alpha)).max() > 0.1


def test_the_wrong_anchor_by_hand() -> None:
    # Base at 0 with curvature 1; the task's optimum is 4, also with curvature 1: jointly (0 + 4) / 2 = 2.
    inputs = {"base": [0], "models": [[4]], "curvature": [[1]], "weight": (1,), "base_curvature": [1]}
    assert match(**inputs, anchor="none") == [2]
    # The anchored rule takes 4 for where fine-tuning was held by the base: (1 + 1) · 4 / 2.
    assert match(**inputs, anchor="base") == [4]
    # With the gradient at 4, which is zero there, nothing need be assumed.
    assert match(**inputs, anchor="measured", gradients=[[0]]) == [2]
    # Held by the base, the gradient is -1 · 4.
    assert match(**inputs, anchor="measured", gradients=[[-4]]) == [4]


@dataclass(frozen=True)
class Sites:
    """Random numbers of every kind, float64."""

    base: Array
    models: Array
    curvature: Array
    base_curvature: Array
    alpha: tuple[float, ...]

    @property
    def deltas(self) -> Array:
        return self.models - self.base

    @property
    def column(self) -> Array:
        return np.array(self.alpha)[:, None]

    def matched(self, **changes: Any) -> Array:
        values = {
            "base": self.base,
            "models": self.models,
            "curvature": self.curvature,
            "weight": self.alpha,
            "base_curvature": self.base_curvature,
        }
        return match(**{**values, **changes})


def sites(seed: int = 0, n: int = 3, numel: int = 50) -> Sites:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=numel)
    return Sites(
        base,
        base + rng.normal(size=(n, numel)),
        rng.gamma(1, size=(n, numel)) + 0.01,
        rng.gamma(1, size=numel) + 0.01,
        (0.7, 1.0, 0.3, 0.6)[:n],
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_merged_model_is_stationary_for_the_surrogate_of_the_joint_loss(seed: int) -> None:
    s = sites(seed)
    m = s.matched()
    residual = s.base_curvature * (m - s.base) + (
        s.column * (s.curvature * (m - s.models) - s.base_curvature * s.deltas)
    ).sum(axis=0)
    assert_close(residual, 0, atol=2e-5)


def test_gradient_matching_by_hand() -> None:
    # H₀ 1 and 2; H₁ 3 and 0; H₂ 0 and 2; task vectors 1 1 and 2 -1.
    # (4 · 1 + 1 · 2) / (1 + 3 + 0) = 1.5 and (2 · 1 - 4 · 1) / (2 + 0 + 2) = -0.5
    result = match([10, 10], [[11, 11], [12, 9]], [[3, 0], [0, 2]], (1, 1), base_curvature=[1, 2])
    assert_close(result, [11.5, 9.5])
    # With weights 2 and 1/2: (2 · 4 + 1/2 · 2) / (1 + 6) = 9/7 and (2 · 2 - 1/2 · 4) / (2 + 1) = 2/3
    result = match([10, 10], [[11, 11], [12, 9]], [[3, 0], [0, 2]], (2, 0.5), base_curvature=[1, 2])
    assert_close(result, [10 + 9 / 7, 10 + 2 / 3])


def test_the_prior_precision_is_added_to_the_base_s_curvature() -> None:
    s = sites()
    assert_close(s.matched(prior_precision=0.5), s.matched(base_curvature=s.base_curvature + 0.5))
    # And stands for it where there is none.
    alone = match(s.base, s.models, s.curvature, s.alpha, prior_precision=0.5)
    assert_close(alone, s.matched(base_curvature=np.full(50, 0.5)))


# --- reductions -------------------------------------------------------------------------------------------------------


def test_without_curvature_of_the_tasks_it_is_task_arithmetic() -> None:
    s = sites()
    flat = np.zeros_like(s.curvature)
    assert_close(s.matched(curvature=flat), s.base + (s.column * s.deltas).sum(axis=0))
    third = (1 / 3, 1 / 3, 1 / 3)
    assert_close(s.matched(curvature=flat, weight=third), s.models.mean(axis=0))


def test_without_curvature_of_the_base_it_is_fisher_averaging_and_forgets_the_base() -> None:
    s = sites()
    average = (s.column * s.curvature * s.models).sum(axis=0) / (s.column * s.curvature).sum(axis=0)
    for base in (s.base, s.base + 3):
        result = s.matched(base=base, base_curvature=np.zeros(50))
        assert_close(result, average)
    inputs = family(models=s.models, fisher=s.curvature)
    assert_close(average, merged("fisher", inputs, weight=s.alpha, normalize_fisher=False, fisher_floor=0))


@pytest.mark.parametrize("h0", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("h1", [1e-3, 1.0, 1e3])
def test_one_task_of_weight_one_is_returned_whatever_the_curvature(h0: float, h1: float) -> None:
    s = sites(n=1)
    result = s.matched(curvature=np.full((1, 50), h1), base_curvature=np.full(50, h0), weight=(1,))
    assert_close(result, s.models[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 2.0, 10.0])
def test_one_task_of_another_weight_saturates_by_its_curvature(alpha: float) -> None:
    s = sites(n=1)
    h0, h1, tau = s.base_curvature, s.curvature[0], s.deltas[0]
    assert_close(s.matched(weight=(alpha,)), s.base + alpha * (h0 + h1) / (h0 + alpha * h1) * tau)


def test_a_weight_without_bound_moves_a_task_by_its_share_and_no_further() -> None:
    # (1 + 4) / 4 of the task vector 8, where task arithmetic would go to infinity.
    assert_close(match([0], [[8]], [[4]], (1e7,), base_curvature=[1]), [10])


def test_weights_that_sum_to_one_stay_between_the_models_and_forget_the_base() -> None:
    s = sites()
    weight = (0.2, 0.5, 0.3)
    result = s.matched(weight=weight)
    assert (result >= s.models.min(axis=0) - 1e-6).all()
    assert (result <= s.models.max(axis=0) + 1e-6).all()
    assert_close(s.matched(weight=weight, base=s.base + 2), result)
    # The base's curvature still decides.
    assert np.abs(s.matched(weight=weight, base_curvature=10 * s.base_curvature) - result).max() > 0.01


def test_other_weights_take_the_base_with_what_is_missing_to_one() -> None:
    s = sites()
    total = s.base_curvature + (s.column * s.curvature).sum(axis=0)
    # 1 - (0.7 + 1 + 0.3) = -1: beyond one task at full weight the merged model leaves the base behind.
    coefficient = s.base_curvature * -1.0 / total
    assert_close(s.matched(base=s.base + 1) - s.matched(), coefficient, atol=1e-5)


def test_without_any_curvature_the_anchored_rule_is_task_arithmetic() -> None:
    s = sites()
    flat, none = np.zeros_like(s.curvature), np.zeros(50)
    arithmetic = s.base + (s.column * s.deltas).sum(axis=0)
    # δ > 0, however small; and its limit.
    for prior in (1.0, 1e-12, 1e-30, 0.0):
        assert_close(s.matched(curvature=flat, base_curvature=none, prior_precision=prior), arithmetic)


def test_without_any_curvature_the_other_rules_stay_at_the_base() -> None:
    s = sites()
    flat, none = np.zeros_like(s.curvature), np.zeros(50)
    stay = {"curvature": flat, "base_curvature": none}
    assert_close(s.matched(**stay, anchor="none"), s.base, atol=1e-7)
    assert_close(s.matched(**stay, anchor="measured", gradients=flat), s.base, atol=1e-7)


def test_single_elements_without_curvature_do_not_spoil_their_neighbours() -> None:
    result = match([1, 1], [[3, 3]], [[0, 1]], (0.5,), base_curvature=[0, 1])
    # Task arithmetic 1 + 0.5 · 2 for the first; 1 + 0.5 · 2 · 2 / 1.5 for the second.
    assert_close(result, [2, 1 + 4 / 3])


def test_a_task_of_enormous_curvature_has_its_way() -> None:
    s = sites()
    curvature = s.curvature.copy()
    curvature[0] = 1e12
    assert_close(s.matched(curvature=curvature, weight=(1.0, 0.5, 0.5)), s.models[0])


def test_a_model_that_is_the_base_holds_the_others_back() -> None:
    # Task vector 2 with curvature 1, and a model at the base with curvature 2, on H₀ = 1.
    assert_close(match([0], [[2]], [[1]], (1,), base_curvature=[1]), [2])
    assert_close(match([0], [[2], [0]], [[1], [2]], (1, 1), base_curvature=[1]), [2 * 2 / 4])


# --- invariances ------------------------------------------------------------------------------------------------------


def test_the_order_of_the_tasks_does_not_matter() -> None:
    s, order = sites(), [2, 0, 1]
    reordered = s.matched(models=s.models[order], curvature=s.curvature[order], weight=tuple(s.alpha[i] for i in order))
    assert_close(reordered, s.matched())


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_factor_common_to_all_curvatures_cancels(factor: float) -> None:
    s = sites()
    expected = s.matched(prior_precision=0.5)
    result = s.matched(
        curvature=factor * s.curvature, base_curvature=factor * s.base_curvature, prior_precision=factor * 0.5
    )
    assert_close(result, expected)


def test_a_factor_of_one_curvature_does_not_cancel() -> None:
    s = sites()
    alone = s.curvature.copy()
    alone[1] *= 10
    for changes in ({"curvature": alone}, {"base_curvature": 10 * s.base_curvature}, {"curvature": 10 * s.curvature}):
        assert np.abs(s.matched(**changes) - s.matched()).max() > 0.05


def test_a_weight_is_not_a_factor_of_the_curvature() -> None:
    # Ten times the examples make H₁ = 10, and the numerator 1 + 10; ten times the weight makes it 10 + 10.
    more_examples = match([0], [[1]], [[10]], (1,), base_curvature=[1])
    more_weight = match([0], [[1]], [[1]], (10,), base_curvature=[1])
    assert_close(more_examples, [11 / 11])
    assert_close(more_weight, [20 / 11])


@pytest.mark.parametrize("anchor", ["base", "none"])
def test_shifting_all_models_shifts_the_result(anchor: str) -> None:
    s = sites()
    shifted = s.matched(base=s.base + 4, models=s.models + 4, anchor=anchor)
    assert_close(shifted, s.matched(anchor=anchor) + 4, atol=1e-5)


def test_rescaling_every_element_with_its_curvature_rescales_the_result() -> None:
    s = sites()
    d = np.random.default_rng(5).uniform(0.2, 5, size=50) * np.where(np.arange(50) % 2, 1, -1)
    result = s.matched(
        base=s.base * d, models=s.models * d, curvature=s.curvature / d**2, base_curvature=s.base_curvature / d**2
    )
    assert_close(result, s.matched() * d, atol=1e-5)


def test_permuting_the_neurons_of_all_models_permutes_those_of_the_result() -> None:
    # Two layers: rows of the first (5 neurons, 4 inputs) and columns of the second (3 outputs, 5 neurons).
    order = np.random.default_rng(1).permutation(5)
    index = np.arange(20).reshape(5, 4)[order].ravel(), np.arange(15).reshape(3, 5)[:, order].ravel()
    for seed, numel, permuted in ((0, 20, index[0]), (1, 15, index[1])):
        s = sites(seed, numel=numel)
        result = s.matched(
            base=s.base[permuted],
            models=s.models[:, permuted],
            curvature=s.curvature[:, permuted],
            base_curvature=s.base_curvature[permuted],
        )
        np.testing.assert_array_equal(result, s.matched()[permuted])


def test_a_task_split_into_two_of_half_the_weight_counts_the_same() -> None:
    s = sites()
    split = s.matched(
        models=np.vstack([s.models, s.models[:1]]),
        curvature=np.vstack([s.curvature, s.curvature[:1]]),
        weight=(s.alpha[0] / 2, *s.alpha[1:], s.alpha[0] / 2),
    )
    assert_close(split, s.matched())


def test_copies_of_one_task_are_that_task_only_if_their_weights_sum_to_one() -> None:
    s = sites(n=1)
    copies = {"models": s.models.repeat(3, axis=0), "curvature": s.curvature.repeat(3, axis=0)}
    assert_close(s.matched(**copies, weight=(1 / 3, 1 / 3, 1 / 3)), s.models[0])
    # At weight one its data count three times.
    assert np.abs(s.matched(**copies, weight=(1, 1, 1)) - s.models[0]).max() > 0.1
    assert_close(s.matched(**copies, weight=(1, 1, 1), base_curvature=np.zeros(50)), s.models[0])


def test_curvatures_proportional_to_the_base_s_rescale_the_weights_of_task_arithmetic() -> None:
    # H₁ = 2 H₀ and H₂ = H₀ / 2 at weights 1 and 2: weights 1 · 3 / 4 and 2 · 1.5 / 4, as 1 + 1 · 2 + 2 · 1/2 = 4.
    s = sites(n=2)
    result = s.matched(curvature=np.stack([2 * s.base_curvature, s.base_curvature / 2]), weight=(1, 2))
    assert_close(result, s.base + 0.75 * s.deltas[0] + 0.75 * s.deltas[1])


# --- composition ------------------------------------------------------------------------------------------------------


def test_the_form_in_natural_parameters_is_the_same() -> None:
    s = sites()
    precision = s.base_curvature + (s.column * s.curvature).sum(axis=0)
    moment = s.base_curvature * s.base + (
        s.column * ((s.base_curvature + s.curvature) * s.models - s.base_curvature * s.base)
    ).sum(axis=0)
    assert_close(s.matched(), moment / precision, atol=1e-5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_tasks_added_one_by_one_as_sites_give_the_joint_merge(order: tuple[int, ...]) -> None:
    s = sites()
    precision, moment = s.base_curvature.copy(), s.base_curvature * s.base
    for i in order:
        moment += s.alpha[i] * ((s.base_curvature + s.curvature[i]) * s.models[i] - s.base_curvature * s.base)
        precision += s.alpha[i] * s.curvature[i]
    assert_close(s.matched(), moment / precision, atol=1e-5)


def test_a_model_trained_from_the_old_base_must_not_be_merged_into_a_merged_one() -> None:
    # H₀ = 1 at 0. Task 1 has curvature 1 and moment 2, so its model is 2/2; task 2 has 7, so its model is 7/2.
    joint = match([0], [[1], [3.5]], [[1], [1]], (1, 1), base_curvature=[1])
    assert_close(joint, [9 / 3])
    first = match([0], [[1]], [[1]], (1,), base_curvature=[1])
    stale = match(first, [[3.5]], [[1]], (1,), base_curvature=[2])
    assert_close(stale, [3.5])
    # Trained again from the first merge, with precision 2 at 1: (2 · 1 + 7) / 3.
    again = match(first, [[3]], [[1]], (1,), base_curvature=[2])
    assert_close(again, joint)


# --- removal ----------------------------------------------------------------------------------------------------------


def test_removal_is_addition_with_a_negative_weight() -> None:
    s = sites(n=1)
    curvature = 0.5 * s.base_curvature[None] * np.random.default_rng(3).uniform(size=(1, 50))
    h0, h1, tau = s.base_curvature, curvature[0], s.deltas[0]
    for alpha in (0.3, 1.0):
        removed = s.matched(curvature=curvature, weight=(-alpha,))
        assert_close(removed, s.base - alpha * (h0 + h1) * tau / (h0 - alpha * h1))


def test_removal_by_hand() -> None:
    # 10 - 1 · (3 + 1) · 2 / (3 - 1) = 6, where negation of the task vector gives 8.
    assert_close(match([10], [[12]], [[1]], (-1,), base_curvature=[3]), [6])


@pytest.mark.parametrize("seed", SEEDS)
def test_examples_within_the_base_s_data_are_unlearned_exactly(seed: int) -> None:
    removed, kept = data(seed, 2)
    # Orthogonal columns in both parts, so also in the whole.
    whole = Data(np.vstack([removed.x, kept.x]), np.concatenate([removed.y, kept.y]))
    problem = Ridge(0.7, whole, [removed])
    retrained = solve(kept.gram + 0.7 * np.eye(6), kept.moment)
    assert_close(problem.matched((-1.0,)), retrained, atol=1e-5)
    # Half removed counts them half.
    half = solve(kept.gram + 0.5 * removed.gram + 0.7 * np.eye(6), kept.moment + 0.5 * removed.moment)
    assert_close(problem.matched((-0.5,)), half, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_removing_what_was_added_returns_the_base_if_the_model_is_trained_again_from_the_merged_one(
    alpha: float,
) -> None:
    problem = Ridge(0.7, *((lambda tasks: (tasks[0], tasks[1:]))(data(4, 2))))
    task = problem.tasks[0]
    added = problem.matched((alpha,))
    precision = problem.base_precision + alpha * task.gram
    retrained = solve(precision + task.gram, precision @ added + task.moment)
    removed = match(added, retrained[None], np.diag(task.gram)[None], (-alpha,), base_curvature=np.diag(precision))
    assert_close(removed, problem.base, atol=1e-5)
    # Not with the model that was trained from the base.
    stale = problem.fine_tuned(task)
    wrong = match(added, stale[None], np.diag(task.gram)[None], (-alpha,), base_curvature=np.diag(precision))
    assert np.abs(wrong - problem.base).max() > 0.05


def test_adding_and_removing_in_one_merge_cancels() -> None:
    s = sites(n=1)
    twice = {"models": s.models.repeat(2, axis=0), "curvature": s.curvature.repeat(2, axis=0)}
    assert_close(s.matched(**twice, weight=(0.8, -0.8)), s.base)


def counts(s: Sites, weight: tuple[float, ...], curvature: Any, **values: Any) -> dict[str, int]:
    method = find_method("gradient_matching")
    inputs = family(base=s.base, models=s.models, curvature=curvature, base_curvature=s.base_curvature)
    return run(method, params_for(method.params, len(weight), weight=weight, **values), {"tensor": inputs}).counts


def test_removal_leaves_a_share_kappa_of_the_base_s_precision_and_counts_where_it_had_to() -> None:
    # H₀ = 2; removing 1, 1.8, 1.9, and 5 leaves 1, 0.2, 0.1 and -3; a tenth of 2 is the least, so two are below it.
    result = match([0] * 4, [[1] * 4], [[1, 1.75, 1.9, 5]], (-1,), base_curvature=[2] * 4)
    assert_close(result, [-3 / 1, -3.75 / 0.25, -3.9 / 0.2, -7 / 0.2])
    s = Sites(np.zeros(4), np.ones((1, 4)), np.ones((1, 4)), np.full(4, 2.0), (-1.0,))
    assert counts(s, (-1.0,), [[1, 1.75, 1.9, 5]]) == {"clipped": 2}
    assert counts(s, (-1.0,), [[1, 1.75, 1.9, 5]], kappa=0.25) == {"clipped": 3}
    assert counts(s, (-1.0,), [[1, 1, 1, 1]]) == {}
    assert counts(s, (1.0,), [[1, 1.75, 1.9, 5]]) == {}


def test_a_larger_kappa_holds_removal_back_further() -> None:
    assert_close(match([0], [[1]], [[5]], (-1,), base_curvature=[2], kappa=1), [-7 / 2])
    assert_close(match([0], [[1]], [[5]], (-1,), base_curvature=[2], kappa=0.5), [-7 / 1])


def test_addition_is_never_clipped() -> None:
    # Precisions far below a tenth of the base's cannot arise by adding; a weight of zero adds nothing.
    s = sites()
    assert_close(s.matched(kappa=1.0), s.matched(kappa=0.01))
    assert_close(s.matched(weight=(0, 0, 0)), s.base, atol=1e-7)


def test_removal_without_any_precision_to_remove_from_is_negation() -> None:
    # Nothing is known of the base here: the limit of a vanishing prior, as in addition.
    assert_close(match([5], [[7]], [[0]], (-1,), base_curvature=[0]), [3])


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_without_curvature_or_prior_of_the_base_it_is_refused() -> None:
    method = find_method("gradient_matching")
    with pytest.raises(ValueError, match="base_fisher or prior_precision"):
        method.needs(params_for(method.params, 1, prior_precision=0), frozenset({Input.CURVATURE}))
    needs = method.needs(params_for(method.params, 1, prior_precision=0.1), frozenset({Input.CURVATURE}))
    assert needs == {Input.BASE, Input.DELTAS, Input.CURVATURE}


def test_gradients_are_read_only_where_the_anchor_asks_for_them() -> None:
    method = find_method("gradient_matching")
    usual = {Input.BASE, Input.DELTAS, Input.CURVATURE, Input.BASE_CURVATURE}
    given = frozenset({Input.BASE_CURVATURE, Input.GRADIENTS})
    for anchor in ("base", "none"):
        assert method.needs(params_for(method.params, 1, anchor=anchor), given) == usual
    for anchor in ("measured", "auto"):
        assert method.needs(params_for(method.params, 1, anchor=anchor), given) == usual | {Input.GRADIENTS}
    # Only one of them insists.
    given = frozenset({Input.BASE_CURVATURE})
    assert method.needs(params_for(method.params, 1, anchor="auto"), given) == usual
    assert method.needs(params_for(method.params, 1, anchor="measured"), given) == usual | {Input.GRADIENTS}


def test_curvatures_of_any_scale_that_float32_holds_are_merged() -> None:
    # Sums of squared gradients can be tiny or huge; only their ratios count.
    for size in (1e-30, 1e-10, 1e10, 1e30):
        result = match([0], [[4]], [[size]], (0.5,), base_curvature=[size])
        assert math.isclose(result.item(), 0.5 * 2 * 4 / 1.5, rel_tol=1e-6)


def test_float32_is_enough_for_small_task_vectors_on_large_weights() -> None:
    # The task vector is 1e-4 of the weight; it must come out to 1e-3 of itself.
    base, step = 8.0, 2.0**-10
    result = match([base], [[base + step]], [[3]], (0.5,), base_curvature=[1])
    assert_close(result - base, [0.5 * 4 / 2.5 * step], rtol=1e-3, atol=0)


# --- what is taken from the whole model -------------------------------------------------------------------------------


INPUTS = ("base", "models", "curvature", "base_curvature", "gradients")


def whole(**given: Any) -> Outcome:
    """Merge a model of two tensors with one element each; inputs are given as rows of both."""
    method = find_method("gradient_matching")
    rows = {name: np.array(given.pop(name), dtype=float) for name in INPUTS if name in given}
    tensors = {
        tensor: family(**{name: values[..., [at]] for name, values in rows.items()})
        for at, tensor in enumerate(("first", "second"))
    }
    return run(method, params_for(method.params, len(rows["models"]), **given), tensors)


def results(outcome: Outcome) -> list[float]:
    return [outcome.tensors[name].item() for name in ("first", "second")]


PLAIN = {"prior_precision": 0.0, "curvature_floor": 0.0, "anchor": "base"}


def test_the_automatic_prior_is_a_hundredth_of_the_base_s_mean_curvature() -> None:
    # Mean of 100 and 300 over both tensors, so δ = 2: (102 + 10) / (102 + 20) · 1 at weight 2, times 2.
    outcome = whole(
        base=[0, 0],
        models=[[1, 1]],
        curvature=[[10, 10]],
        base_curvature=[100, 300],
        weight=(2,),
        **{**PLAIN, "prior_precision": "auto"},
    )
    assert_close(results(outcome), [2 * 112 / 122, 2 * 312 / 322])


def test_without_a_curvature_of_the_base_the_automatic_prior_is_the_mean_of_the_tasks() -> None:
    # Means 2 and 6, so H₀ = 4 everywhere: (4 + 1) · 1 + (4 + 6) · 2 over 4 + 7, and (4 + 3) + (4 + 6) · 2 over 4 + 9.
    outcome = whole(
        base=[0, 0],
        models=[[1, 1], [2, 2]],
        curvature=[[1, 3], [6, 6]],
        weight=(1, 1),
        **{**PLAIN, "prior_precision": "auto"},
    )
    assert_close(results(outcome), [25 / 11, 27 / 13])


def test_the_floor_of_a_curvature_is_relative_to_its_mean_over_the_model() -> None:
    # Means 5 and 1: floors 0.5 and 0.1 where the first is 0, and where the second is.
    outcome = whole(
        base=[0, 0],
        models=[[1, 1], [3, 3]],
        curvature=[[0, 10], [2, 0]],
        base_curvature=[1, 1],
        **{**PLAIN, "curvature_floor": 0.1},
    )
    assert_close(results(outcome), [(1.5 * 1 + 3 * 3) / 3.5, (11 * 1 + 1.1 * 3) / 11.1])


def test_the_automatic_anchor_is_the_share_of_the_base_s_pull_that_the_gradients_show() -> None:
    # ⟨g, τ⟩ = -1 · 1 - 1 · 2 = -3 and ⟨τ, H₀ τ⟩ = 2 · 1 + 1 · 4 = 6 for the first model: k = 1/2.
    # The second pulls three times as much as H₀ would, and the third not at all: k = 1 and 0.
    # Together, weighted, that is 0.25 + 0.5 + 0, no more than one anchor.
    outcome = whole(
        base=[0, 0],
        models=[[1, 2], [1, 2], [1, 2]],
        curvature=[[4, 4], [4, 4], [4, 4]],
        base_curvature=[2, 1],
        gradients=[[-1, -1], [-6, -6], [1, 1]],
        weight=(0.5, 0.5, 0.5),
        **{**PLAIN, "anchor": "auto"},
    )
    scales = outcome.measured["first"]
    assert scales.gratio == (0.5, 3.0, -0.5)
    assert scales.anchors == (0.5, 1.0, 0.0)
    # Half of (1 + 4) + (2 + 4) + (0 + 4) over 2 + 6, and half of (0.5 + 4) + (1 + 4) + (0 + 4), times 2, over 1 + 6.
    assert_close(results(outcome), [7.5 / 8, 13.5 / 7])


def test_models_that_are_added_share_one_anchor_at_most() -> None:
    # Shares 1/2 and 1 with weights 2 and 1 come to 2: halved. The removed model keeps its own, and does not count.
    outcome = whole(
        base=[0, 0],
        models=[[1, 2], [1, 2], [1, 2]],
        curvature=[[4, 4], [4, 4], [1, 1]],
        base_curvature=[2, 1],
        gradients=[[-1, -1], [-6, -6], [-6, -6]],
        weight=(2, 1, -1),
        **{**PLAIN, "anchor": "auto"},
    )
    assert outcome.measured["first"].gratio == (0.5, 3.0, 3.0)
    assert outcome.measured["first"].anchors == (0.25, 0.5, 1.0)
    # 2 (0.5 + 4) + (1 + 4) - (2 + 1) over 2 + 8 + 4 - 1; 2 (0.25 + 4) + (0.5 + 4) - (1 + 1), times 2, over 1 + 11.
    assert_close(results(outcome), [11 / 13, 2 * 11 / 12])


def test_with_one_anchor_the_merged_model_lies_between_base_and_models() -> None:
    s = sites()
    found = np.asarray(s.matched(anchor="auto"))
    corners = np.concatenate([np.asarray(s.base)[None], np.asarray(s.models)])
    assert (found >= corners.min(axis=0) - 1e-6).all()
    assert (found <= corners.max(axis=0) + 1e-6).all()
    outside = np.asarray(s.matched(anchor="base"))
    assert ((outside < corners.min(axis=0) - 1e-3) | (outside > corners.max(axis=0) + 1e-3)).any()


def test_the_prior_counts_in_the_pull_that_the_base_should_have() -> None:
    # τ = 1 and 2, H₀ = 2 + 1 and 1 + 1: 3 + 8 = 11, of which 5.5 are seen.
    outcome = whole(
        base=[0, 0],
        models=[[1, 2]],
        curvature=[[4, 4]],
        base_curvature=[2, 1],
        gradients=[[-1.5, -2]],
        **{**PLAIN, "anchor": "auto", "prior_precision": 1.0},
    )
    assert outcome.measured["first"].gratio == (0.5,)


def test_without_gradients_the_automatic_anchor_is_the_paper_s_where_the_weights_come_to_no_more_than_one() -> None:
    task = {"base": [0, 0], "models": [[1, 2], [3, -1]], "curvature": [[4, 1], [2, 2]], "base_curvature": [2, 1]}
    shared, papers = (
        results(whole(**task, weight=(0.75, 0.25), **{**PLAIN, "anchor": anchor})) for anchor in ("auto", "base")
    )
    assert_close(shared, papers, rtol=0, atol=0)
    # (0.75 (2 + 4) 1 + 0.25 (2 + 2) 3) over 2 + 3 + 0.5.
    assert papers[0] == pytest.approx(7.5 / 5.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_models_held_by_the_base_are_recognised_by_their_gradients(seed: int) -> None:
    problem = ridge(seed)
    models = [problem.fine_tuned(task) for task in problem.tasks]
    gradients = np.stack([task.gradient(model) for task, model in zip(problem.tasks, models, strict=True)])
    alpha = (0.25, 0.125, 0.5)
    assert_close(problem.matched(alpha, models, anchor="auto", gradients=gradients), problem.joint(alpha))


@pytest.mark.parametrize("seed", SEEDS)
def test_models_trained_to_their_optimum_are_recognised_by_their_gradients(seed: int) -> None:
    problem = ridge(seed)
    models = [solve(task.gram, task.moment) for task in problem.tasks]
    gradients = np.stack([task.gradient(model) for task, model in zip(problem.tasks, models, strict=True)])
    alpha = (0.5, 0.25, 2.0)
    assert_close(problem.matched(alpha, models, anchor="auto", gradients=gradients), problem.joint(alpha))


def test_a_model_that_did_not_move_was_held_and_pulls_nothing() -> None:
    outcome = whole(
        base=[1, 1],
        models=[[1, 1]],
        curvature=[[4, 4]],
        base_curvature=[2, 1],
        gradients=[[5, 5]],
        **{**PLAIN, "anchor": "auto"},
    )
    assert outcome.measured["first"].anchors == (1.0,)
    assert results(outcome) == [1, 1]


# --- box, precision, diagnosis ----------------------------------------------------------------------------------------


def test_a_box_keeps_every_step_between_zero_and_the_task_vectors() -> None:
    # Both tasks step beyond: (1 + 4) (1 + 2) / (1 + 8) = 15/9, inside [0, 2]; with H₀ = 100 to 104 · 3 / 108 = 2.89.
    task = {"base": [0], "models": [[1], [2]], "curvature": [[4], [4]], "weight": (1, 1)}
    assert_close(match(**task, base_curvature=[1], box=True), [15 / 9])
    assert_close(match(**task, base_curvature=[100], box=False), [312 / 108])
    assert_close(match(**task, base_curvature=[100], box=True), [2])
    # Opposite task vectors bound on both sides, and a removed one is turned around.
    task = {"base": [0], "models": [[-1], [2]], "curvature": [[4], [4]], "base_curvature": [100]}
    assert_close(match(**task, weight=(3, 0.1), box=True), [-1])
    assert_close(match(**task, weight=(-3, 0.1), box=True), [2])
    assert_close(match(**task, weight=(-3, 0), box=True), [1])


def test_the_precision_of_the_merged_model_is_emitted() -> None:
    method = find_method("gradient_matching")
    inputs = family(base=[0, 0], models=[[1, 1], [1, 1]], curvature=[[1, 2], [30, 40]], base_curvature=[5, 6])
    params = params_for(method.params, 2, weight=(2, 0.1), **{**PLAIN, "prior_precision": 0.5})
    emitted = run(method, params, {"tensor": inputs}).emitted["tensor"]
    # 5 + 0.5 + 2 · 1 + 3 and 6 + 0.5 + 2 · 2 + 4
    assert_close(emitted["precision"].numpy(), [10.5, 14.5])


def test_a_precision_is_positive_whatever_the_parameters_are() -> None:
    method = find_method("gradient_matching")
    tensors = smooth_tensors(5, 2, {"first": 50, "second": 7})
    for params in typical_params(method.params, 2):
        for emitted in run(method, params, tensors).emitted.values():
            assert bool((emitted["precision"] > 0).all())


def test_the_guarded_precision_is_the_one_that_is_emitted() -> None:
    method = find_method("gradient_matching")
    inputs = family(base=[0], models=[[1]], curvature=[[5]], base_curvature=[2])
    outcome = run(method, params_for(method.params, 1, weight=(-1,), **PLAIN), {"tensor": inputs})
    assert_close(outcome.emitted["tensor"]["precision"].numpy(), [0.2])


def test_merged_models_compose_by_their_emitted_precision() -> None:
    # First task 1 is merged; then the result, with the curvature P - H₀ and fully anchored, together with task 2.
    s = sites(n=2)
    method = find_method("gradient_matching")
    first_inputs = family(base=s.base, models=s.models[:1], curvature=s.curvature[:1], base_curvature=s.base_curvature)
    first = run(method, params_for(method.params, 1, weight=s.alpha[:1], **PLAIN), {"tensor": first_inputs})
    curvature = first.emitted["tensor"]["precision"].double().numpy() - s.base_curvature
    composed = s.matched(
        models=np.stack([first.tensors["tensor"].double().numpy(), s.models[1]]),
        curvature=np.stack([curvature, s.curvature[1]]),
        weight=(1.0, s.alpha[1]),
    )
    assert_close(composed, s.matched(), atol=1e-5)


def test_a_merged_model_is_anchored_whatever_the_others_are() -> None:
    # Its precision holds all that was merged into it. H₀ 2, H 3 and 5, task vectors 1 and 3.
    inputs = family(base=[0], models=[[1], [3]], curvature=[[3], [5]], base_curvature=[2])
    method = find_method("gradient_matching")
    params = params_for(method.params, 2, **{**PLAIN, "anchor": "none"})

    def step(*posterior: bool) -> float:
        rows = {need: inputs[need] for need in method.needs(params, frozenset(inputs))}
        return method.merge(Block(rows, Masks(0, 0, "tensor", 2, 0), posterior=posterior), params).item()

    assert step() == pytest.approx((3 * 1 + 5 * 3) / 10)
    assert step(False, False) == pytest.approx((3 * 1 + 5 * 3) / 10)
    assert step(True, False) == pytest.approx((5 * 1 + 5 * 3) / 10)
    assert step(True, True) == pytest.approx((5 * 1 + 7 * 3) / 10)


def diagnosis(outcome: Outcome, n: int, **values: Any) -> Any:
    method = find_method("gradient_matching")
    return method.diagnose(outcome.sums, outcome.measured["first"], params_for(method.params, n, **values))


def test_extrapolation_compares_the_step_with_the_task_vectors_in_the_merged_precision() -> None:
    # Steps 3 and 0 in precisions 3 and 5: 3 · 9 + 5 · 0 = 27.
    task = {
        "base": [0, 0],
        "models": [[1, 1], [2, -1]],
        "curvature": [[0, 0], [0, 0]],
        "base_curvature": [3, 5],
        "weight": (1, 1),
        **PLAIN,
    }
    outcome = whole(**task)
    assert results(outcome) == [3, 0]
    # Task vectors 1 1 and 2 -1 in the same precisions: 3 + 5 = 8 and 3 · 4 + 5 = 17, on average 12.5.
    found = diagnosis(outcome, 2, weight=(1, 1), **PLAIN)
    assert found.values["extrapolation"] == pytest.approx(27 / 12.5)
    assert found.values["prior_precision"] == 0.0
    assert "extrapolation 2.2" in found.warnings[0]


def test_the_forecast_for_task_arithmetic_is_the_mismatch_of_its_gradients() -> None:
    # To second order the gradient of task i at m differs by H_i (m - θ_i) from that at θ_i; in the metric of 1 / H₀.
    s = sites()
    arithmetic = s.base + (s.column * s.deltas).sum(axis=0)
    gap = (s.column * s.curvature * (arithmetic - s.models)).sum(axis=0)
    inputs = family(base=s.base, models=s.models, curvature=s.curvature, base_curvature=s.base_curvature)
    method = find_method("gradient_matching")
    params = params_for(method.params, 3, weight=s.alpha, **PLAIN)
    outcome = run(method, params, {"tensor": inputs})
    found = method.diagnose(outcome.sums, outcome.measured["tensor"], params)
    assert found.values["mismatch_of_task_arithmetic"] == pytest.approx(
        math.sqrt((gap**2 / s.base_curvature).sum()), rel=1e-4
    )


def test_a_box_is_what_gradient_matching_itself_mismatches() -> None:
    # Without a box the target 312 / 108 is reached; the box stops at 2, in precision 108 on H₀ = 100.
    task = {"base": [0, 0], "models": [[1, 1], [2, 2]], "curvature": [[4, 4]] * 2, "base_curvature": [100, 100]}
    free, boxed = (whole(**task, weight=(1, 1), box=box, **PLAIN).sums for box in (False, True))
    assert free["mismatch_gradient_matching"] == 0
    gap = 312 / 108 - 2
    assert boxed["mismatch_gradient_matching"] == pytest.approx(2 * 108**2 / 100 * gap**2, rel=1e-4)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_a_diagnosis_of_curvatures_of_any_scale_is_finite(size: float) -> None:
    task = {"base": [0, 0], "models": [[1, 1], [2, 1]], "curvature": [[size, 0]] * 2, "base_curvature": [size, size]}
    found = diagnosis(whole(**task, weight=(1, 1), **PLAIN), 2, weight=(1, 1), **PLAIN)
    assert all(math.isfinite(value) for value in found.values.values())
    # The first element moves by (2 + 4) / 3 and the second by 2, of precisions 3 and 1.
    assert found.values["extrapolation"] == pytest.approx((3 * 4 + 4) / ((3 + 1 + 3 * 4 + 1) / 2))


def test_a_merge_far_beyond_its_task_vectors_warns() -> None:
    task = {"base": [0, 0], "models": [[1, 1], [1, 1]], "curvature": [[0, 0], [0, 0]], "base_curvature": [1, 1]}
    found = diagnosis(whole(**task, weight=(1, 1), **PLAIN), 2, weight=(1, 1), **PLAIN)
    # Twice as long, so four times the square.
    assert found.values["extrapolation"] == pytest.approx(4)
    assert len(found.warnings) == 1
    assert "far beyond the task vectors" in found.warnings[0]


def advice(weight: tuple[float, ...], **values: Any) -> str:
    """What is advised for task vectors of 1, without curvature of their own, on a base of precision 1."""
    n = len(weight)
    task = {"base": [0, 0], "models": [[1, 1]] * n, "curvature": [[0, 0]] * n, "base_curvature": [1, 1]}
    task |= {"gradients": values.pop("gradients")} if "gradients" in values else {}
    settings = {**PLAIN, "curvature_floor": 0, **values}
    [warning] = diagnosis(whole(**task, weight=weight, **settings), n, weight=weight, **settings).warnings
    assert "far beyond the task vectors" in warning
    return str(warning).partition("worse than the base): ")[2]


def test_advice_is_what_the_recipe_does_not_do_yet() -> None:
    anchored = advice((1, 1))
    assert anchored == "use anchor: auto, lower the weights towards 0.5, set box: true, or use task_arithmetic"
    assert advice((-2, -2)).startswith("use anchor: auto, bring the negative weights towards 0, set box: true")
    assert "lower the weights" not in advice((-2, -2))
    held = {"anchor": "auto", "gradients": [[-1, -1]]}
    assert advice((-2,), **held) == "bring the negative weights towards 0, set box: true, or use task_arithmetic"


@pytest.mark.parametrize(
    ("gratio", "said"),
    [
        (-0.5, "is the gradient that of its own training data? (gratio -0.5, pulls with 0 of"),
        (0.1, "it ran nearly to convergence (gratio 0.1, pulls with 0.1 of"),
        (0.5, "held back by the base's curvature in part (gratio 0.5, pulls with 0.5 of"),
        (1.0, "held back by the base's curvature, as assumed (gratio 1, pulls with 1 of"),
        (4.8, "stopped before the base's curvature held it back (gratio 4.8, pulls with 1 of"),
    ],
)
def test_what_a_gradient_says_of_its_model_is_said_in_a_sentence(gratio: float, said: str) -> None:
    # The gradient of a model that moved by 1 on a curvature of 1.
    task = {"base": [0, 0], "models": [[1, 1]], "curvature": [[1, 1]], "base_curvature": [1, 1]}
    auto = {**PLAIN, "anchor": "auto"}
    [sentence] = diagnosis(whole(**task, gradients=[[-gratio, -gratio]], **auto), 1, **auto).models
    assert said in sentence


def test_a_diagnosis_says_in_words_how_far_a_merge_goes_and_which_of_two_others_is_better() -> None:
    task = {"base": [0, 0], "models": [[1, 0], [0, 1]], "curvature": [[9, 0], [0, 9]], "base_curvature": [1, 1]}
    settings = {**PLAIN, "weight": (1, 1), "curvature_floor": 0}
    found = diagnosis(whole(**task, **settings), 2, **settings)
    # Each element moves by (1 + 9) / (1 + 9) = 1, in precision 10: 20 against 10 on average. Task arithmetic is there,
    # the average a half away: the square of 10 · 0.5, twice.
    assert found.values["extrapolation"] == pytest.approx(2)
    assert found.notes == ("task arithmetic is expected to be better than the average (gradient mismatch 0, 7.07)",)
    alone = {**PLAIN, "weight": (1,)}
    task = {"base": [0, 0], "models": [[1, 1]], "curvature": [[1, 1]], "base_curvature": [1, 1]}
    assert diagnosis(whole(**task, **alone), 1, **alone).notes == (
        "the merged model goes no further than its task vectors (extrapolation 1)",
    )


def test_missing_gradients_warn_where_the_anchor_was_to_be_found() -> None:
    task = {"base": [0, 0], "models": [[1, 1]], "curvature": [[1, 1]], "base_curvature": [1, 1]}
    auto = {**PLAIN, "anchor": "auto"}
    assert "no gradients are stored" in diagnosis(whole(**task, **auto), 1, **auto).warnings[0]
    found = diagnosis(whole(**task, gradients=[[-1, -1]], **auto), 1, **auto)
    assert found.warnings == ()
    assert (found.values["gratio"], found.values["anchors"]) == ([1.0], [1.0])
