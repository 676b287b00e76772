"""The battery passes what keeps the contract, and names the rule that a method breaks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ConfigDict

from merge_cli.kernels import chunk_sums, weighted_sum
from merge_cli.methods.contract import (
    Block,
    Diagnosis,
    Input,
    Measure,
    Measured,
    MeasureOver,
    Method,
    Params,
    Scope,
    Step,
    Weights,
    measure_sums,
    per_model,
)
from merge_cli.testing import (
    PlainTensor,
    RuleBroken,
    check_method,
    check_step,
    method_checks,
    params_for,
    per_tensor,
    step_checks,
    typical_params,
)


class Shares(Params):
    """One weight per model."""

    weight: Weights = per_model(description="share of the model")


def mixed(block: Block, params: Shares) -> Any:
    return weighted_sum(block.models, params.weight)


@per_tensor
def mix(tensor: PlainTensor, params: Shares) -> list[float]:
    columns = zip(*tensor.models, strict=True)
    return [math.fsum(w * x for w, x in zip(params.weight, column, strict=True)) for column in columns]


MIX = Method(
    merge=mixed,
    params=Shares,
    needs=lambda params, available: frozenset({Input.MODELS}),
    summary="a weighted sum",
    equation="merged = Σ wᵢ θᵢ",
    source="no paper: a weighted sum",
    numpy=True,
)


def doubled(block: Block, params: Params) -> Any:
    return block.deltas * 2.0


DOUBLE = Step(apply=doubled, params=Params, source="doi: none", numpy=True)


@per_tensor
def double(tensor: PlainTensor, params: Params) -> list[list[float]]:
    return [[2 * x for x in row] for row in tensor.deltas]


def broken(method: Method, *rules: str, oracle: Any = mix) -> dict[str, str]:
    """Return which of some rules a method breaks, and what is said of each."""
    checks = {check.name: check for check in method_checks(method, oracle=oracle)}
    said = {}
    for rule in rules:
        try:
            checks[rule]()
        except RuleBroken as error:
            said[rule] = str(error)
    return said


def test_a_method_and_a_step_that_keep_the_contract_pass() -> None:
    check_method(MIX, oracle=mix)
    check_step(DOUBLE, oracle=double)


def test_the_first_rule_that_is_broken_stops_the_battery() -> None:
    with pytest.raises(RuleBroken, match="the source is ''\n  hint: name the paper"):
        check_method(replace(MIX, source=""), oracle=mix)
    with pytest.raises(RuleBroken, match="the source is ''"):
        check_step(replace(DOUBLE, source=""), oracle=double)


# --- methods that break a rule ----------------------------------------------------------------------------------------


def centred(block: Block, params: Shares) -> Any:
    result = mixed(block, params)
    return result - float(result.mean())


def in_place(block: Block, params: Shares) -> Any:
    block.models[0][:] *= 2.0
    return mixed(block, params)


def put_back(block: Block, params: Shares) -> Any:
    row = block.models[0]
    row += 0.0
    return mixed(block, params)


def handed_on(block: Block, params: Shares) -> Any:
    return block.models[0]


def reads_more(block: Block, params: Shares) -> Any:
    return mixed(block, params) + 0 * block.base


def too_short(block: Block, params: Shares) -> Any:
    return mixed(block, params)[:-1]


def a_little_off(block: Block, params: Shares) -> Any:
    return mixed(block, params) * 1.001


def always_numpy(block: Block, params: Shares) -> Any:
    return np.asarray(mixed(block, params))


def emitting(block: Block, params: Shares) -> Any:
    block.emit("extra", mixed(block, params))
    return mixed(block, params)


def counting(block: Block, params: Shares) -> Any:
    block.count("negative", block.models[0] < 0)
    return mixed(block, params)


def in_order(params: Shares) -> Measure:
    """Collect the first number of each block, in the order in which they come."""

    def fold(state: str, part: list[float] | None, block: Block, params: Shares) -> list[float]:
        return [*(part or []), float(block.models[0][0])]

    return Measure(
        frozenset({Input.MODELS}),
        MeasureOver.MODEL,
        start=lambda totals, params: "once",
        fold=fold,
        combine=lambda left, right: left + right,
        finish=lambda state, part: Measured(tuple(part)),
    )


def weighing(params: Shares) -> Measure:
    """Read the weights without saying so."""
    return measure_sums(
        frozenset({Input.MODELS}),
        MeasureOver.MODEL,
        lambda block, params: chunk_sums(block.models),
        lambda totals, params, sums: sums[0] * params.weight[0],
        depends=(),
    )


class Lenient(Shares):
    """Accepts anything."""

    model_config = ConfigDict(allow_inf_nan=True, extra="ignore")


class Undescribed(Params):
    """Says nothing of its field."""

    weight: Weights = per_model(description="")


MUTANTS: dict[str, tuple[Mapping[str, Any], dict[str, str]]] = {
    "a mean of each block": (
        {"merge": centred},
        {"any_block_size": "depends on how a tensor is cut", "last_block": "depends on how a tensor is cut"},
    ),
    "a measure that depends on the order": (
        {"measure": in_order},
        {"measure_order": "depends on the order in which its parts are combined", "any_block_size": "measured values"},
    ),
    "a measure that depends on more than it says": (
        {"measure": weighing},
        {"measure_depends": "says that it depends on [] and reads more"},
    ),
    "a scope that is none": ({"scope": lambda params, shape: "rows"}, {"scope": "scope gives 'rows'"}),
    "too few numbers": ({"merge": too_short}, {"scope": r"has shape (0,); expected (1,)"}),
    "an input that is changed": ({"merge": in_place}, {"inputs_are_not_modified": "written to"}),
    "an input that is written": ({"merge": put_back}, {"inputs_are_not_modified": "written to"}),
    "an input that is returned": ({"merge": handed_on}, {"inputs_are_not_modified": "in the memory of the input"}),
    "an input that is not declared": (
        {"merge": reads_more},
        {"needs": "reads block.base without declaring it; add Input.BASE"},
    ),
    "an input that is not read": (
        {"needs": lambda params, available: frozenset({Input.MODELS, Input.BASE})},
        {"needs": "declares Input.BASE, which is not read"},
    ),
    "another kind of array": ({"merge": always_numpy}, {"kinds_of_arrays": "the result is ndarray, expected Tensor"}),
    "a second result that is not declared": ({"merge": emitting}, {"second_results": "emitted are ['extra']"}),
    "a count that is not explained": ({"merge": counting}, {"second_results": "counted is ['negative']"}),
    "a diagnosis of NaN": (
        {"diagnose": lambda sums, measured, params: Diagnosis({"far": math.nan})},
        {"second_results": "cannot be written as JSON"},
    ),
    "a model that is not returned": (
        {"merge": lambda block, params: weighted_sum(block.models, [1.0] * block.n)},
        {"fixed_point": "3 times the same model does not merge to that model", "oracle": "by the oracle"},
    ),
    "a copy that is none": ({"copies": lambda params: True}, {"copies": "is returned as it is, and it is not"}),
    "numbers that are a little off": ({"merge": a_little_off}, {"oracle": "by the oracle", "fixed_point": "1 times"}),
    "no equation": ({"equation": "a sum"}, {"description": "the equation is 'a sum'"}),
    "a parameter without a word": ({"params": Undescribed}, {"description": "the parameter weight is described as ''"}),
    "parameters that take anything": ({"params": Lenient}, {"parameters": "weight=(nan,) * 3 is accepted"}),
}


@pytest.mark.parametrize("what", MUTANTS)
def test_what_breaks_a_rule_is_named_with_the_rule_and_a_hint(what: str) -> None:
    changes, expected = MUTANTS[what]
    said = broken(replace(MIX, **changes), *expected)
    for rule, words in expected.items():
        assert words.replace("(nan,) * 3", "(nan, nan, nan)") in said[rule]
        assert "\n  hint: " in said[rule]


def test_a_method_that_says_that_it_has_no_fixed_point_is_believed() -> None:
    def half(block: Block, params: Shares) -> Any:
        return mixed(block, params) * 0.5

    assert "fixed_point" in broken(replace(MIX, merge=half), "fixed_point")
    assert not broken(replace(MIX, merge=half, fixed_point=None), "fixed_point")


def test_a_step_that_does_not_read_the_deltas_is_named() -> None:
    step = replace(DOUBLE, apply=lambda block, params: block.column([0.0] * block.n) + 0 * block.base)
    with pytest.raises(LookupError, match=r"block\.base"):
        next(check for check in step_checks(step, oracle=double) if check.name == "needs")()


# --- scopes -----------------------------------------------------------------------------------------------------------


def softmax(block: Block, params: Params) -> Any:
    """Return the softmax of each row of the first model."""
    rows = np.asarray(block.models[0]).reshape(-1, (block.shape or (1,))[-1])
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@per_tensor
def softmax_oracle(tensor: PlainTensor, params: Params) -> list[float]:
    columns = (tensor.shape or (1,))[-1]
    result = []
    for start in range(0, len(tensor.base), columns):
        powers = [math.exp(x) for x in tensor.models[0][start : start + columns]]
        result += [power / math.fsum(powers) for power in powers]
    return result


def test_rows_are_cut_between_rows_where_the_scope_says_so() -> None:
    by_rows = replace(
        MIX, merge=softmax, params=Params, models=(1, 1), scope=lambda params, shape: Scope.ROW, fixed_point=None
    )
    rules = ("any_block_size", "last_block", "scope", "oracle")
    assert not broken(by_rows, *rules, oracle=softmax_oracle)
    as_elements = replace(by_rows, scope=lambda params, shape: Scope.ELEMENT)
    assert broken(as_elements, *rules, oracle=softmax_oracle).keys() == {"any_block_size", "last_block"}
    assert "says so in its scope" in broken(as_elements, "any_block_size")["any_block_size"]


def test_whole_tensors_are_not_cut() -> None:
    def largest(block: Block, params: Params) -> Any:
        return block.models[0] / float(abs(block.models[0]).max())

    whole = replace(MIX, merge=largest, params=Params, models=(1, 1), fixed_point=None)
    rules = ("any_block_size", "last_block")
    assert not broken(replace(whole, scope=lambda params, shape: Scope.TENSOR), *rules)
    assert broken(whole, *rules).keys() == set(rules)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_a_parameter_of_a_type_that_no_generator_knows_is_named() -> None:
    class Strange(Params):
        colour: complex

    check = next(each for each in method_checks(replace(MIX, params=Strange), oracle=mix) if each.name == "oracle")
    with pytest.raises(RuleBroken, match="cannot make values for the parameter colour"):
        check()


def test_examples_come_first_and_each_other_choice_once() -> None:
    class Choices(Params):
        share: float = 1.0
        each: tuple[float, ...] = per_model(1.0, example=0.25, description="each")
        kept: bool = True

    Choices.model_fields["share"].examples = [0.5, 0.75]
    found = [(params.share, params.each, params.kept) for params in typical_params(Choices, 2)]
    assert found == [(0.5, (0.25, 0.25), True), (0.75, (0.25, 0.25), True), (0.5, (0.25, 0.25), False)]
    assert params_for(Choices, 2) == Choices(share=1.0, each=(1.0, 1.0), kept=True)


def test_an_example_that_the_parameters_refuse_is_named() -> None:
    class Limited(Params):
        share: tuple[bool, ...] = per_model(description="whether")

    with pytest.raises(RuleBroken, match=r"refuses its own examples and defaults: share\.0"):
        typical_params(Limited, 2)
