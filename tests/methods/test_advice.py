"""Weights and other parameters that are unusual for their method are told of, usual ones are not."""

from typing import Any

import pytest

from merge_cli.methods import find_method, method_names
from merge_cli.testing import params_for, typical_params
from tests.methods.support import methods_with


def caution(name: str, *weight: float, **values: Any) -> str:
    method = find_method(name)
    given = {"weight": weight, **values} if weight else values
    return method.caution(params_for(method.params, len(weight) or 1, **given))


# Methods of task vectors that add them unless they are told to normalize.
TASK_VECTORS = [
    name for name in methods_with("lambda") if find_method(name).params.model_fields["normalize"].default is False
]


@pytest.mark.parametrize("name", method_names())
def test_equal_shares_are_usual_in_every_method(name: str) -> None:
    method = find_method(name)
    params = typical_params(method.params, 1)[0]
    share = {"weight": (1.0,)} if "weight" in method.params.model_fields else {}
    scale = {"scale": 1.0} if "scale" in method.params.model_fields else {}
    assert method.caution(params.model_copy(update=share | scale)) == ""


@pytest.mark.parametrize("name", methods_with("density"))
def test_a_density_of_zero_is_told_of_as_nothing_is_kept(name: str) -> None:
    assert "keeps nothing of the task vector of model 2 of 2" in caution(name, 0.5, 0.5, density=(0.5, 0))
    assert "keeps nothing of the task vector of any model" in caution(name, 0.5, 0.5, density=(0, 0))
    assert caution(name, 0.5, 0.5, density=(1e-6, 1)) == ""


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.33, 0.33, 0.33), (1, 1, -1)])
def test_an_average_without_normalize_sums_to_one(weights: tuple[float, ...]) -> None:
    assert caution("linear", *weights, normalize=False) == ""


def test_an_average_that_scales_the_model_is_told_of() -> None:
    assert "sum to 0.8 and normalize is false" in caution("linear", 0.4, 0.4, normalize=False)
    assert "every number of the merged model is 2 times an average" in caution("linear", 1, 1, normalize=False)
    assert caution("linear", 1, 1) == ""


def test_weights_that_nearly_cancel_before_they_are_divided_by_their_sum_are_told_of() -> None:
    # (1 + 0.5) / (1 - 0.5) = 3 is the limit; (1 + 0.9) / (1 - 0.9) = 19.
    assert caution("linear", 1, -0.5) == ""
    assert "by their sum, 0.1, they count 19 in all" in caution("linear", 1, -0.9)


@pytest.mark.parametrize("name", TASK_VECTORS)
@pytest.mark.parametrize("weights", [(1,), (-0.5,), (0.4, 0.4, 0.4), (0.5, 0.5, 0.5), (0.3,) * 8, (0.5,) * 4])
def test_usual_weights_of_task_vectors_are_not_told_of(name: str, weights: tuple[float, ...]) -> None:
    assert caution(name, *weights) == ""


@pytest.mark.parametrize("name", TASK_VECTORS)
def test_task_vectors_that_count_too_much_are_told_of(name: str) -> None:
    assert "count 2 in all, with lambda; up to 1.5 is usual for 2 task vectors" in caution(name, 1, 1)
    assert "count 3 in all" in caution(name, 1, scale=3.0)
    assert "up to 4 is usual for 8 task vectors" in caution(name, *(1,) * 8)
    # What is subtracted counts as well.
    assert "count 2 in all" in caution(name, 1, -1)


@pytest.mark.parametrize("name", ["ties", *TASK_VECTORS])
def test_normalized_task_vectors_count_by_lambda_alone(name: str) -> None:
    assert caution(name, 1, 1, 1, normalize=True) == ""
    assert caution(name, 3, 1, normalize=True, scale=2.0) == ""
    assert "count 2.5 in all, with lambda and normalize; up to 2" in caution(name, 1, 1, normalize=True, scale=2.5)


def test_a_point_beyond_both_models_is_told_of() -> None:
    assert [caution("slerp", t=t) for t in (0.0, 0.5, 1.0)] == ["", "", ""]
    assert "t = 1.25 lies beyond" in caution("slerp", t=1.25)
    assert "t = -0.1 lies beyond" in caution("slerp", t=-0.1)


def test_gradient_matching_of_many_models_at_full_weight_and_removal_beyond_one_are_told_of() -> None:
    assert "1/4 each is the safer start" in caution("gradient_matching", 1, 1, 1, 1)
    assert caution("gradient_matching", 0.25, 0.25, 0.25, 0.25) == ""
    assert caution("gradient_matching", 1, 1, 1) == ""
    assert caution("gradient_matching", -1) == ""
    assert "removal with a weight beyond -1" in caution("gradient_matching", -1.5)
    assert "count 4 in all" in caution("gradient_matching", 2, 2)
