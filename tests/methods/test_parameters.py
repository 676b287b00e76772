"""What parameters are accepted and what is refused, with reasons."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from merge_cli.methods import find_method, find_step
from merge_cli.methods.contract import Params, field_default, is_constant, is_per_model, per_model, setting
from merge_cli.testing import params_for
from tests.methods.support import methods_with


def params(method: str, n: int, **values: Any) -> Params:
    return params_for(find_method(method).params, n, **values)


@pytest.mark.parametrize("weight", [(1, -1), (0.1, 0.2, -0.3), (0, 0)])
def test_an_average_whose_weights_sum_to_zero_must_not_be_normalized(weight: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="sum to zero"):
        params("linear", len(weight), weight=weight)
    params("linear", len(weight), weight=weight, normalize=False)


@pytest.mark.parametrize("weight", [(1, -0.5), (0, 0), (-1,)])
def test_fisher_averaging_refuses_weights_that_are_no_precisions(weight: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="at least 0, and one above 0"):
        params("fisher", len(weight), weight=weight)


def test_the_base_alone_may_have_weight_in_fisher_averaging() -> None:
    params("fisher", 2, weight=(0, 0), include_base=True)


@pytest.mark.parametrize("favour", [2, -1, "first"])
def test_fisher_averaging_can_favour_only_a_model_that_there_is(favour: int | str) -> None:
    with pytest.raises(ValidationError, match="favour"):
        params("fisher", 2, favour=favour)
    params("fisher", 2, favour=1)


@pytest.mark.parametrize("method", methods_with("density"))
@pytest.mark.parametrize("density", [-0.1, 1.1])
def test_a_density_is_a_fraction(method: str, density: float) -> None:
    with pytest.raises(ValidationError, match="density"):
        params(method, 1, weight=(1,), density=(density,))


@pytest.mark.parametrize("drop_rate", [-0.1, 1.1])
def test_a_drop_rate_is_a_fraction(drop_rate: float) -> None:
    with pytest.raises(ValidationError, match="drop_rate"):
        find_step("dare").params(drop_rate=drop_rate)


@pytest.mark.parametrize("name", methods_with("lambda"))
def test_the_scale_is_called_lambda_in_recipes(name: str) -> None:
    kind = find_method(name).params
    assert kind.model_fields["scale"].alias == "lambda"
    assert params(name, 1, weight=(1,), **{"lambda": 0.5}) == params(name, 1, weight=(1,), scale=0.5)
    assert params(name, 1, weight=(1,)).scale == 1.0


@pytest.mark.parametrize(
    ("name", "value"), [("kappa", 0), ("kappa", 1.5), ("prior_precision", -0.1), ("base_examples", 0)]
)
def test_gradient_matching_refuses_numbers_that_are_no_precisions(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        params("gradient_matching", 1, **{name: value})


def test_parameters_cannot_be_changed() -> None:
    made_once = params("linear", 1, weight=(1,))
    with pytest.raises(ValidationError, match="frozen"):
        made_once.weight = (2,)


def test_what_a_published_recipe_leaves_out_is_what_mergekit_would_take() -> None:
    assert params("linear", 1, weight=(1,)).normalize is True
    assert params("task_arithmetic", 1, weight=(1,)).normalize is False
    ties = params("ties", 1, weight=(1,))
    assert (ties.density, ties.normalize, ties.trim, ties.zero_sum, ties.scale) == ((1.0,), True, "tensor", "plus", 1.0)
    for name in ("dare_linear", "dare_ties"):
        dare = params(name, 1, weight=(1,))
        assert (dare.density, dare.normalize, dare.rescale, dare.scale) == ((1.0,), False, True, 1.0)


@pytest.mark.parametrize("name", ["linear", *methods_with("lambda")])
def test_weights_must_be_given(name: str) -> None:
    with pytest.raises(ValidationError, match="weight"):
        params(name, 2)


def test_a_field_says_whether_it_holds_per_model_and_for_all_tensors() -> None:
    class Example(Params):
        needed: tuple[float, ...] = per_model(description="needed")
        defaulted: tuple[float, ...] = per_model(0.5, description="defaulted")
        fixed: int = setting(3, description="fixed")
        fixed_each: tuple[int, ...] = per_model(1, description="fixed for each", constant=True)

    fields = Example.model_fields
    assert [is_per_model(field) for field in fields.values()] == [True, True, False, True]
    assert [is_constant(field) for field in fields.values()] == [False, False, True, True]
    assert [field_default(field) for field in fields.values()] == [None, 0.5, 3, 1]


def test_a_passed_through_tensor_is_copied_only_if_nothing_changes_it() -> None:
    method = find_method("passthrough")
    assert method.copies(params_for(method.params, 1))
    assert not method.copies(params_for(method.params, 1, scale=(0.5,)))
