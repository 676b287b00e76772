"""Rules about the numbers: those of the definition, for every kind of array, and a model that is merged with itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from merge_cli.kernels import GRAIN
from merge_cli.methods.contract import Input, Method, Params, Step, is_per_model
from merge_cli.testing.arrays import ArrayKind, gpu_kinds, numbers_of, same_bits
from merge_cli.testing.draws import difference, each_of, few_models, kinds, models_of, usual_models
from merge_cli.testing.harness import Setup, run
from merge_cli.testing.parameters import any_params, params_for, typical_params
from merge_cli.testing.rules import require
from merge_cli.testing.tensors import (
    Model,
    Oracle,
    Shapes,
    coarse_tensors,
    copies_of_one,
    plain,
    smooth_tensors,
)


def check_oracle(what: Method | Step, oracle: Oracle) -> None:
    """Check the result against loops over Python's own float64 numbers, written from the definition.

    Once with real numbers, and once with multiples of 1/8 that repeat, cancel and are zero.
    """

    def example(data: st.DataObject, *, coarse: bool) -> None:
        n = data.draw(few_models(what, 4))
        rows, columns, small = (data.draw(st.integers(1, most)) for most in (5, 8, 9))
        shapes = {"first": (rows, columns), "second": (small,)}
        params, seed = data.draw(any_params(what.params, n)), data.draw(st.integers(0, 10**6))
        assume(not (coarse and isinstance(what, Method) and what.rounds_before_deciding(params)))
        numbers = coarse_tensors(seed, n, shapes) if coarse else smooth_tensors(seed, n, shapes)
        expected = oracle(plain(numbers, shapes), params)
        for kind in kinds(what):
            result = run(what, params, kind.convert(numbers), Setup(shapes=shapes)).tensors
            for name in shapes:
                _compare(numbers_of(result[name]), expected[name], numbers, f"'{name}' from {kind.name}", params)

    each_of(30, lambda data: example(data, coarse=False))
    each_of(30, lambda data: example(data, coarse=True))


def _compare(found: Any, expected: Any, numbers: Model, where: str, params: Params) -> None:
    wanted = np.array(expected, dtype=np.float64)
    require(
        wanted.shape == found.shape and np.isfinite(wanted).all(),
        f"the oracle gives numbers of shape {wanted.shape} for {where}, finite: {np.isfinite(wanted).all()}; the "
        f"result has shape {found.shape}; with {params!r}",
        hint="let the oracle return one finite number per element: a list, and for a step one list per model",
    )
    # Relative to the element, and to the largest number around for what is left of those that cancelled.
    around = max(1.0, np.abs(wanted).max(), *(np.abs(inputs[Input.MODELS]).max() for inputs in numbers.values()))
    off = np.abs(found - wanted) - (2e-5 * np.abs(wanted) + 2e-6 * around)
    worst = int(off.argmax())
    require(
        off.max() <= 0,
        f"{where} is {found.ravel()[worst]!r} at {worst}; by the oracle {wanted.ravel()[worst]!r}; with {params!r}",
        hint="one of the two is not the definition; where equal numbers decide something after they were rounded, say "
        "so in rounds_before_deciding",
    )


def check_fixed_point(method: Method) -> None:
    """Check that a model merged with itself is returned, where the method says so."""
    fewest, most = models_of(method)
    shapes = {"first": (500,), "second": (7,)}
    if method.fixed_point is None:
        return
    for n in (1, 3):
        if not fewest <= n <= (most or n):
            continue
        params = _equal_shares(method, n)
        # A method of whole models takes the base that it reads for one of them; one of deltas starts from it.
        base_too = Input.MODELS in method.needs(params, frozenset(Input) - {Input.GRADIENTS})
        numbers = copies_of_one(11, n, shapes, base_too=base_too)
        for kind in kinds(method):
            for name, result in run(method, params, kind.convert(numbers)).tensors.items():
                model = numbers[name][Input.MODELS][0]
                require(
                    np.allclose(numbers_of(result), model, rtol=1e-5, atol=1e-6),
                    f"{n} times the same model does not merge to that model: {difference(result, model)}; with "
                    f"{params!r}",
                    hint="name in fixed_point the parameters with which it does, or say fixed_point=None",
                )


def _equal_shares(method: Method, n: int) -> Params:
    """Return weights of 1/n, what the method says under which it has a fixed point, and else defaults."""
    fields = method.params.model_fields
    values = {name: each for name, each in typical_params(method.params, n)[0] if fields[name].is_required()}
    values = {name: each for name, each in values.items() if not is_per_model(fields[name])}
    if "weight" in fields:
        values["weight"] = (1 / n,) * n
    for name, value in (method.fixed_point or {}).items():
        values[name] = (value,) * n if is_per_model(fields[name]) else value
    return params_for(method.params, n, **values)


def check_copies(method: Method) -> None:
    """Check that the result is the only model, to the bit, where ``copies`` says so: its file is then copied."""
    n, shapes = method.models[0], {"first": (50,), "second": (7,)}

    def example(data: st.DataObject) -> None:
        params = data.draw(st.one_of(any_params(method.params, n), st.sampled_from(_with_defaults(method, n))))
        if not method.copies(params):
            return
        require(n == 1, f"copies says yes of {n} models", hint="only one model can be copied")
        numbers = smooth_tensors(data.draw(st.integers(0, 100)), n, shapes)
        for kind in kinds(method):
            result = run(method, params, kind.convert(numbers)).tensors
            models = {name: inputs[Input.MODELS][0] for name, inputs in numbers.items()}
            require(
                same_bits(result, models),
                f"copies says that the only model is returned as it is, and it is not; with {params!r}",
                hint="let copies be true only where nothing changes the model",
            )

    each_of(20, example)


def _with_defaults(method: Method, n: int) -> list[Params]:
    return [_equal_shares(method, n), *typical_params(method.params, n)]


def check_kinds_of_arrays(what: Method | Step) -> None:
    """Check that numpy's arrays, torch's tensors and a GPU's give the same results, as far as they are there."""
    n = usual_models(what, 3)
    shapes: Shapes = {"large": (2 * GRAIN + 77,), "matrix": (9, 33), "small": (9,)}
    numbers = smooth_tensors(3, n, shapes)
    for params in typical_params(what.params, n):
        first, *others = kinds(what)
        for other in others + gpu_kinds():
            _compare_kinds(what, params, numbers, shapes, (first, other))


def _compare_kinds(
    what: Method | Step, params: Params, numbers: Model, shapes: Shapes, pair: tuple[ArrayKind, ArrayKind]
) -> None:
    here, there = (run(what, params, kind.convert(numbers), Setup(shapes=shapes)) for kind in pair)
    names = f"{pair[0].name} and {pair[1].name}"
    for name in numbers:
        require(
            np.allclose(numbers_of(there.tensors[name]), numbers_of(here.tensors[name]), rtol=1e-5, atol=1e-5),
            f"{names} arrays give different results for '{name}': "
            f"{difference(here.tensors[name], there.tensors[name])}; with {params!r}",
            hint="keep to operators and merge_cli.kernels, or say numpy=False",
        )
        kinds_of = type(there.tensors[name]), type(pair[1].make(numbers[name][Input.BASE]))
        require(
            kinds_of[0] is kinds_of[1],
            f"given {pair[1].name} arrays the result is {kinds_of[0].__name__}, expected {kinds_of[1].__name__}",
            hint="return an array of the kind that was given",
        )
    require(
        here.counts == there.counts,
        f"{names} arrays give different counts, {here.counts} and {there.counts}; with {params!r}",
        hint="count by comparisons that both kinds decide alike",
    )
