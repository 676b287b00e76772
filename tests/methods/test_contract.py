"""The battery that every merge method and every preparing step passes; a new one is found by its file name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from merge_cli.kernels import GRAIN
from merge_cli.methods import find_method, find_step, method_names, step_names
from merge_cli.methods.contract import Block, Input, Masks, Method, Params, Step, is_per_model
from tests import oracle
from tests.methods.support import (
    WHOLE,
    Setup,
    Tensors,
    any_params,
    any_sizes,
    assert_close,
    coarse_tensors,
    declared,
    few_models,
    made,
    measure,
    run,
    same_bits,
    smooth_tensors,
    typical_params,
    withholding,
)

METHODS = {name: find_method(name) for name in method_names()}
STEPS = {name: find_step(name) for name in step_names()}
EVERYTHING: dict[str, Method | Step] = {**METHODS, **STEPS}

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
everything = pytest.mark.parametrize("what", EVERYTHING.values(), ids=EVERYTHING.keys())
measuring = pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, id=name)
        for name, what in EVERYTHING.items()
        if any(what.measure(params) for params in typical_params(what.params, 1))
    ],
)
everything_by_name = pytest.mark.parametrize("name", EVERYTHING)


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


# --- the cut into blocks ----------------------------------------------------------------------------------------------


@everything
@examples(5)
@given(data=st.data())
def test_any_block_size_gives_the_same_bits(what: Method | Step, data: st.DataObject) -> None:
    n = data.draw(few_models(what, 6))
    tensors = smooth_tensors(data.draw(st.integers(0, 3)), n, data.draw(any_sizes()))
    params = data.draw(any_params(what.params, n))
    whole = run(what, params, tensors)
    cut = run(what, params, tensors, Setup(block=data.draw(st.integers(1, 2)) * GRAIN))
    assert same_bits(whole.tensors, cut.tensors)
    assert all(same_bits(whole.emitted[name], cut.emitted[name]) for name in tensors)
    assert (whole.counts, whole.sums, whole.measured) == (cut.counts, cut.sums, cut.measured)


@everything
def test_a_last_block_of_a_few_elements_gives_the_same_bits_as_in_a_whole_tensor(what: Method | Step) -> None:
    # From five models on torch.sum adds the columns of (n, 1) and of (n, 4) to (n, 7) in orders of their own.
    n = min(9, what.models[1] or 9) if isinstance(what, Method) else 9
    tensors = smooth_tensors(7, n, {f"tail of {more}": GRAIN + more for more in (1, 5)})
    for params in typical_params(what.params, n):
        cut = run(what, params, tensors, Setup(block=GRAIN))
        assert same_bits(run(what, params, tensors).tensors, cut.tensors), params


@measuring
@examples(5)
@given(data=st.data())
def test_parts_of_a_measure_combine_in_any_order_and_grouping_to_the_same_value(
    what: Method | Step, data: st.DataObject
) -> None:
    n = data.draw(few_models(what, 3))
    tensors = smooth_tensors(data.draw(st.integers(0, 3)), n, {"first": 2 * GRAIN + 5, "second": 100, "third": GRAIN})
    params = data.draw(st.sampled_from([params for params in typical_params(what.params, n) if what.measure(params)]))
    in_order = measure(what, params, tensors, Setup(block=GRAIN))
    shuffled = measure(what, params, tensors, Setup(block=GRAIN, shuffle=data.draw(st.integers(0, 1000))))
    assert in_order == shuffled


# --- purity -----------------------------------------------------------------------------------------------------------


@everything
@examples(10)
@given(data=st.data())
def test_inputs_and_parameters_are_not_modified(what: Method | Step, data: st.DataObject) -> None:
    n = data.draw(few_models(what, 4))
    tensors = coarse_tensors(data.draw(st.integers(0, 100)), n, {"first": 50, "second": 7})
    params = data.draw(any_params(what.params, n))
    before = {name: {need: rows.clone() for need, rows in inputs.items()} for name, inputs in tensors.items()}
    written = {name: {need: rows._version for need, rows in inputs.items()} for name, inputs in tensors.items()}
    values = params.model_dump()
    result = run(what, params, tensors).tensors
    assert all(same_bits(before[name], inputs) for name, inputs in tensors.items())
    # A write that puts back the same numbers is a write all the same: torch counts them.
    assert written == {name: {need: rows._version for need, rows in x.items()} for name, x in tensors.items()}
    assert params.model_dump() == values
    # Nor is an input handed on: its buffer is used again for the next block.
    own = {rows.untyped_storage().data_ptr() for inputs in tensors.values() for rows in inputs.values()}
    assert not own & {rows.untyped_storage().data_ptr() for rows in result.values()}


# --- needs ------------------------------------------------------------------------------------------------------------


@every_method
def test_every_declared_input_is_read_and_a_missing_one_is_named(method: Method) -> None:
    n = max(method.models[0], min(2, method.models[1] or 2))
    tensors = smooth_tensors(5, n, {"first": 50, "second": 7})
    for params in typical_params(method.params, n):
        needs = method.needs(params, frozenset(Input))
        complete = run(method, params, tensors).tensors
        for need in needs:
            setup = withholding(WHOLE, need)
            if need in method.needs(params, frozenset(Input) - {need}):
                with pytest.raises(LookupError, match=f"Input.{need.name}"):
                    run(method, params, tensors, setup)
            else:
                # The method does without it where the recipe does not name it; where it does, it must matter.
                assert not same_bits(complete, run(method, params, tensors, setup).tensors), f"{need} is not read"


@every_method
def test_every_input_that_a_measure_declares_is_read_by_it(method: Method) -> None:
    n = max(method.models[0], min(2, method.models[1] or 2))
    tensors = smooth_tensors(5, n, {"first": 50, "second": 7})
    for params in typical_params(method.params, n):
        found = method.measure(params)
        for need in found.needs & declared(method, params, tensors) if found else ():
            if need in method.needs(params, frozenset(Input) - {need}):
                with pytest.raises(LookupError, match=f"Input.{need.name}"):
                    measure(method, params, tensors, withholding(WHOLE, need))


@every_step
def test_a_step_and_its_measure_read_the_deltas_and_nothing_else(step: Step) -> None:
    tensors = smooth_tensors(5, 2, {"first": 50, "second": 7})
    for params in typical_params(step.params, 2):
        run(step, params, tensors)
        found = step.measure(params)
        assert found is None or found.needs == {Input.DELTAS}
        with pytest.raises(LookupError, match=r"Input\.DELTAS"):
            step.apply(without_deltas(tensors), params)


def without_deltas(tensors: Tensors) -> Block:
    base = tensors["first"][Input.BASE]
    return Block({Input.BASE: base}, Masks(0, 0, "first", 2, 0), measured=[(1.0, 1.0), (1.0, 1.0)])


# --- second results ---------------------------------------------------------------------------------------------------


@every_method
def test_a_method_emits_a_precision_for_every_element_if_it_says_so_and_nothing_else(method: Method) -> None:
    n = method.models[0]
    tensors = smooth_tensors(5, n, {"first": 50, "second": 7})
    for params in typical_params(method.params, n):
        for name, emitted in run(method, params, tensors).emitted.items():
            assert emitted.keys() == set(method.emits)
            assert all(values.shape == tensors[name][Input.BASE].shape for values in emitted.values())
            assert all(bool((values > 0).all()) for values in emitted.values())


@every_method
def test_a_diagnosis_is_made_of_plain_values_and_sentences(method: Method) -> None:
    n = method.models[0]
    tensors = smooth_tensors(5, n, {"first": 50, "second": 7})
    for params in typical_params(method.params, n):
        outcome = run(method, params, tensors)
        diagnosis = method.diagnose(outcome.sums, outcome.measured["first"], params)
        # What the report writes: no NaN, which is no JSON.
        json.dumps(dict(diagnosis.values), allow_nan=False)
        assert all(isinstance(warning, str) and warning for warning in diagnosis.warnings)


# --- what it is -------------------------------------------------------------------------------------------------------


@every_method
def test_a_method_says_what_it_is_and_where_it_comes_from(method: Method) -> None:
    assert method.summary
    assert method.equation.startswith("merged = ")
    assert any(mark in method.source for mark in ("arXiv", "doi", "no paper"))
    fewest, most = method.models
    assert fewest >= 1
    assert most is None or most >= fewest


@every_step
def test_a_step_says_where_it_comes_from(step: Step) -> None:
    assert "arXiv" in step.source or "doi" in step.source


@everything
def test_every_parameter_is_described_in_one_line(what: Method | Step) -> None:
    for name, field in what.params.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description


@everything
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_no_parameters(what: Method | Step, wrong: float) -> None:
    typical = typical_params(what.params, 1)[0].model_dump()
    for name, value in typical.items():
        bad = (wrong,) if isinstance(value, tuple) else wrong
        with pytest.raises(ValueError, match=name):
            what.params(**{**typical, name: bad})


@everything
def test_a_parameter_that_does_not_exist_is_refused(what: Method | Step) -> None:
    typical = typical_params(what.params, 1)[0].model_dump()
    with pytest.raises(ValueError, match="denisty"):
        what.params(**typical, denisty=0.5)


# --- results ----------------------------------------------------------------------------------------------------------

# Methods that do not return a model merged with itself at weights 1/n and otherwise default values, with the reason.
NOT_ITSELF: dict[str, str] = {}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1, 3])
def test_a_model_merged_with_itself_is_returned(name: str, n: int) -> None:
    method = METHODS[name]
    if name in NOT_ITSELF:
        pytest.skip(NOT_ITSELF[name])
    if not method.models[0] <= n <= (method.models[1] or n):
        pytest.skip("does not take so many models")
    one = smooth_tensors(11, 1, {"first": 500, "second": 7})
    tensors = {
        # Gradients that do not belong to the models would say that they are somewhere else.
        tensor: {need: x.repeat(n, 1) if x.dim() == 2 else x for need, x in inputs.items() if need != Input.GRADIENTS}
        for tensor, inputs in one.items()
    }
    values: dict[str, Any] = {"weight": (1 / n,) * n} if "weight" in method.params.model_fields else {}
    if "t" in method.params.model_fields:
        # Slerp's two models are the base and the only other one.
        values["t"] = 0.3
        for inputs in tensors.values():
            inputs[Input.BASE] = inputs[Input.MODELS][0]
    result = run(method, made(method.params, n, **values), tensors).tensors
    for tensor, inputs in tensors.items():
        assert_close(result[tensor], inputs[Input.MODELS][0], rtol=1e-5, atol=1e-6)


Vectors = list[list[float]]
Model = dict[str, list[float]]


def model_of(tensors: Tensors, need: Input, row: int | None = None) -> Model:
    return {name: (inputs[need] if row is None else inputs[need][row]).tolist() for name, inputs in tensors.items()}


def models_of(tensors: Tensors, need: Input) -> list[Model]:
    n = len(next(iter(tensors.values()))[need])
    return [model_of(tensors, need, row) for row in range(n)]


def each_tensor(tensors: Tensors, work: Callable[[str, dict[Input, Any]], Any]) -> dict[str, Any]:
    return {
        name: work(name, {need: rows.tolist() for need, rows in inputs.items()}) for name, inputs in tensors.items()
    }


def masks_for(name: str, densities: list[float], numel: int) -> list[list[int]]:
    return [oracle.keep_mask((0, 0, model, name), numel, density) for model, density in enumerate(densities)]


def expected_linear(tensors: Tensors, p: Any) -> dict[str, Any]:
    return each_tensor(tensors, lambda _, x: oracle.linear(x[Input.MODELS], p.weight, normalize=p.normalize))


def expected_passthrough(tensors: Tensors, p: Any) -> dict[str, Any]:
    return each_tensor(tensors, lambda _, x: oracle.passthrough(x[Input.MODELS][0], p.scale[0]))


def expected_task_arithmetic(tensors: Tensors, p: Any) -> dict[str, Any]:
    return each_tensor(
        tensors,
        lambda _, x: oracle.task_arithmetic(
            x[Input.BASE], x[Input.DELTAS], p.weight, scale=p.scale, normalize=p.normalize
        ),
    )


def expected_slerp(tensors: Tensors, p: Any) -> dict[str, Any]:
    return each_tensor(tensors, lambda _, x: oracle.slerp(x[Input.BASE], x[Input.MODELS][0], p.t))


def expected_ties(tensors: Tensors, p: Any) -> dict[str, Any]:
    return oracle.ties(
        model_of(tensors, Input.BASE),
        models_of(tensors, Input.DELTAS),
        p.weight,
        p.density,
        scale=p.scale,
        normalize=p.normalize,
        trim=p.trim,
        elect=p.elect,
        zero_sum=p.zero_sum,
    )


def expected_dare_linear(tensors: Tensors, p: Any) -> dict[str, Any]:
    return each_tensor(
        tensors,
        lambda name, x: oracle.dare_linear(
            x[Input.BASE],
            x[Input.DELTAS],
            masks_for(name, p.density, len(x[Input.BASE])),
            p.weight,
            p.density,
            scale=p.scale,
            normalize=p.normalize,
            rescale=p.rescale,
        ),
    )


def expected_dare_ties(tensors: Tensors, p: Any) -> dict[str, Any]:
    return each_tensor(
        tensors,
        lambda name, x: oracle.dare_ties(
            x[Input.BASE],
            x[Input.DELTAS],
            masks_for(name, p.density, len(x[Input.BASE])),
            p.weight,
            p.density,
            scale=p.scale,
            normalize=p.normalize,
            rescale=p.rescale,
            elect=p.elect,
            zero_sum=p.zero_sum,
        ),
    )


def expected_fisher(tensors: Tensors, p: Any) -> dict[str, Any]:
    return oracle.fisher(
        models_of(tensors, Input.MODELS),
        models_of(tensors, Input.FISHER),
        p.weight,
        normalize_fisher=p.normalize_fisher,
        fisher_floor=p.fisher_floor,
        favour=p.favour,
        base=model_of(tensors, Input.BASE) if p.include_base else None,
        base_fisher=model_of(tensors, Input.BASE_FISHER) if p.include_base else None,
    )


def expected_gradient_matching(tensors: Tensors, p: Any) -> dict[str, Any]:
    scales = matching_scales(tensors, p)
    return each_tensor(
        tensors,
        lambda _, x: oracle.gradient_matching(
            x[Input.BASE],
            x[Input.DELTAS],
            x[Input.CURVATURE],
            p.weight,
            scales,
            base_curvature=x[Input.BASE_CURVATURE],
            gradients=x[Input.GRADIENTS] if p.anchor == "measured" else None,
            kappa=p.kappa,
            box=p.box,
        ),
    )


def matching_scales(tensors: Tensors, p: Any) -> oracle.Scales:
    return oracle.matching_scales(
        models_of(tensors, Input.CURVATURE),
        base_curvature=model_of(tensors, Input.BASE_CURVATURE),
        prior_precision=p.prior_precision,
        curvature_floor=p.curvature_floor,
        anchor=p.anchor,
        weights=p.weight,
        deltas=models_of(tensors, Input.DELTAS),
        gradients=models_of(tensors, Input.GRADIENTS),
    )


def expected_dare(tensors: Tensors, p: Any) -> dict[str, Any]:
    def drop(name: str, x: dict[Input, Any]) -> Vectors:
        densities = [1 - p.drop_rate] * len(x[Input.DELTAS])
        masks = masks_for(name, densities, len(x[Input.BASE]))
        return oracle.dare(x[Input.DELTAS], masks, densities, rescale=p.rescale)

    return each_tensor(tensors, drop)


def expected_keep_largest(tensors: Tensors, p: Any) -> dict[str, Any]:
    deltas = models_of(tensors, Input.DELTAS)
    kept = oracle.keep_largest(deltas, [p.density] * len(deltas), scope=p.scope)
    return {name: [model[name] for model in kept] for name in tensors}


ORACLES: dict[str, Callable[[Tensors, Any], dict[str, Any]]] = {
    "dare": expected_dare,
    "dare_linear": expected_dare_linear,
    "dare_ties": expected_dare_ties,
    "fisher": expected_fisher,
    "gradient_matching": expected_gradient_matching,
    "keep_largest": expected_keep_largest,
    "linear": expected_linear,
    "passthrough": expected_passthrough,
    "slerp": expected_slerp,
    "task_arithmetic": expected_task_arithmetic,
    "ties": expected_ties,
}


def scale_of(tensors: Tensors) -> float:
    return max(float(inputs[Input.MODELS].abs().max()) for inputs in tensors.values())


@everything_by_name
@pytest.mark.parametrize("kind", ["coarse", "smooth"])
@examples(30)
@given(data=st.data())
def test_the_result_is_the_one_of_the_loops_written_from_the_paper(name: str, kind: str, data: st.DataObject) -> None:
    if name not in ORACLES:
        pytest.fail(f"tests/oracle.py has no {name}; write it from its paper, and add it to ORACLES")
    what = EVERYTHING[name]
    n = data.draw(few_models(what, 4))
    sizes = {"first": data.draw(st.integers(1, 40)), "second": data.draw(st.integers(1, 9))}
    seed = data.draw(st.integers(0, 10**6))
    params = data.draw(any_params(what.params, n))
    # Factors that float32 does not hold exactly would decide which of two cancelling entries wins an election.
    assume(kind == "smooth" or not inexact_factors(params))
    tensors = coarse_tensors(seed, n, sizes) if kind == "coarse" else smooth_tensors(seed, n, sizes)
    result = run(what, params, tensors).tensors
    expected = ORACLES[name](tensors, params)
    for tensor in tensors:
        wanted = torch.tensor(expected[tensor], dtype=torch.float64)
        assert math.isfinite(wanted.abs().max())
        # Relative to the element, and to the largest number around for what is left of those that cancelled.
        around = max(1.0, scale_of(tensors), float(wanted.abs().max()))
        assert_close(result[tensor], wanted, rtol=2e-5, atol=2e-6 * around)


def inexact_factors(params: Any) -> bool:
    rescale = getattr(params, "rescale", False)
    densities = getattr(params, "density", ()) or (1 - getattr(params, "drop_rate", 0),)
    return rescale == "l1" or (rescale and any(density not in (0, 0.125, 0.25, 0.5, 1) for density in densities))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@everything
def test_a_gpu_gives_the_result_of_the_cpu(what: Method | Step) -> None:
    n = max(1, what.models[0]) if isinstance(what, Method) else 3
    tensors = smooth_tensors(3, n, {"large": 2 * GRAIN + 77, "small": 9})
    moved = {name: {need: rows.cuda() for need, rows in inputs.items()} for name, inputs in tensors.items()}
    for params in typical_params(what.params, n):
        here, there = run(what, params, tensors), run(what, params, moved)
        assert here.counts == there.counts
        for name in tensors:
            assert there.tensors[name].is_cuda
            assert_close(there.tensors[name], here.tensors[name], rtol=1e-5, atol=1e-5)


# --- the battery itself -----------------------------------------------------------------------------------------------


def test_the_methods_and_steps_of_the_two_papers_line_of_work_are_all_there() -> None:
    assert METHODS.keys() >= {
        "dare_linear",
        "dare_ties",
        "fisher",
        "gradient_matching",
        "linear",
        "passthrough",
        "slerp",
        "task_arithmetic",
        "ties",
    }
    assert STEPS.keys() >= {"dare", "keep_largest"}


def test_a_parameter_that_no_generator_knows_fails_the_battery_by_name() -> None:
    class Strange(Params):
        colour: complex

    @examples(1)
    @given(any_params(Strange, 2))
    def draw(_: Params) -> None:
        pass

    with pytest.raises(pytest.fail.Exception, match="colour"):
        draw()


@everything
def test_generated_parameters_have_one_value_per_model_where_the_field_says_so(what: Method | Step) -> None:
    n = what.models[0] if isinstance(what, Method) else 3
    for params in typical_params(what.params, n):
        for name, field in what.params.model_fields.items():
            assert not is_per_model(field) or len(getattr(params, name)) == n
