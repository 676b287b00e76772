"""Rules about what a method may touch and what it must say that it reads."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from merge_cli.methods.contract import Block, Input, Masks, Measure, Method, Params, Step
from merge_cli.testing.arrays import ArrayKind, Tensors, numbers_of, same_bits
from merge_cli.testing.draws import each_of, few_models, kinds, usual_models
from merge_cli.testing.harness import Setup, declared, measure, run
from merge_cli.testing.parameters import any_params, typical_params
from merge_cli.testing.rules import RuleBroken, require
from merge_cli.testing.tensors import coarse_tensors, smooth_tensors

_NEW_ARRAY = "make a new array; operators such as += change the array that they are given"
_SHAPES = {"first": (50,), "second": (7,)}


def check_inputs_are_not_modified(what: Method | Step) -> None:
    """Check that inputs and parameters stay as they are, and that no result lies in the memory of an input."""

    def example(data: st.DataObject) -> None:
        n = data.draw(few_models(what, 4))
        numbers = coarse_tensors(data.draw(st.integers(0, 100)), n, _SHAPES)
        params = data.draw(any_params(what.params, n))
        values = params.model_dump()
        for kind in kinds(what):
            _check_untouched(what, params, kind.convert(numbers), kind.convert(numbers))
        require(
            params.model_dump() == values,
            f"the parameters were changed, from {values} to {params.model_dump()}",
            hint="make a new value instead",
        )

    each_of(10, example)


def _check_untouched(what: Method | Step, params: Params, tensors: Tensors, before: Tensors) -> None:
    written = _writes(tensors)
    try:
        result = run(what, params, tensors).tensors
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise RuleBroken(f"an input is written to: {error}; with {params!r}", hint=_NEW_ARRAY) from error
    for name, inputs in tensors.items():
        # A write that puts back the same numbers is a write all the same: torch counts them.
        changed = [key for key in inputs if not same_bits({"": inputs[key]}, {"": before[name][key]})]
        changed += [key for key in inputs if written[name][key] != _writes(tensors)[name][key]]
        require(
            not changed,
            f"the inputs {', '.join(dict.fromkeys(changed))} are modified; with {params!r}",
            hint=_NEW_ARRAY,
        )
        shared = [key for key, rows in inputs.items() if np.shares_memory(numbers_of(rows), numbers_of(result[name]))]
        require(
            not shared,
            f"the result lies in the memory of the input {', '.join(shared)}, which the next block is read into; with "
            f"{params!r}",
            hint="return a new array, such as x * 1.0",
        )


def _writes(tensors: Tensors) -> dict[str, dict[Input, int]]:
    """Return how often each torch tensor was written to; numpy's arrays are made read-only instead."""
    counts: dict[str, dict[Input, int]] = {}
    for name, inputs in tensors.items():
        counts[name] = {}
        for key, rows in inputs.items():
            if isinstance(rows, np.ndarray):
                rows.flags.writeable = False
            counts[name][key] = getattr(rows, "_version", 0)
    return counts


def check_needs(what: Method | Step) -> None:
    """Check that every input that is declared is read, and that nothing else is asked for."""
    n = usual_models(what, 2)
    for params in typical_params(what.params, n):
        for kind in kinds(what):
            if isinstance(what, Method):
                _check_needs_of_method(what, params, kind, n)
            else:
                _check_needs_of_step(what, params, kind, n)


def _check_needs_of_method(method: Method, params: Params, kind: ArrayKind, n: int) -> None:
    tensors = kind.convert(smooth_tensors(5, n, _SHAPES))
    try:
        complete = run(method, params, tensors).tensors
    except LookupError as error:
        raise RuleBroken(f"{error}; with {params!r}", hint="let needs() return it under these parameters") from error
    for key in method.needs(params, frozenset(Input)):
        optional = key not in method.needs(params, frozenset(Input) - {key})
        try:
            without = run(method, params, tensors, Setup(withheld=frozenset({key}))).tensors
        except LookupError as error:
            if f".{key.name} " in str(error) and not optional:
                continue
            raise
        # The method does without it where the recipe does not name it; where it does, it must matter.
        require(
            optional and not same_bits(complete, without),
            f"needs() declares Input.{key.name}, which is not read; with {params!r}",
            hint="declare what is read and nothing else: every input is read from disk for every block",
        )
    _check_needs_of_measure(method, params, tensors)


def _check_needs_of_measure(method: Method, params: Params, tensors: Tensors) -> None:
    found = method.measure(params)
    for key in found.needs & declared(method, params, tensors) if found else ():
        if key not in method.needs(params, frozenset(Input) - {key}):
            continue
        try:
            measure(method, params, tensors, Setup(withheld=frozenset({key})))
        except LookupError:
            continue
        raise RuleBroken(
            f"the measure declares Input.{key.name}, which it does not read; with {params!r}",
            hint="declare what fold reads and nothing else",
        )


def check_measure_depends(what: Method | Step) -> None:
    """Check that a measure that says on which parameters it depends reads no others: merges share its value."""
    n = usual_models(what, 2)
    for params in typical_params(what.params, n):
        found = what.measure(params)
        if found is None or found.depends is None:
            continue
        told: Any = SimpleNamespace(**{name: getattr(params, name) for name in found.depends})
        for kind in kinds(what):
            try:
                measure(_with_measure(what, found, params), told, kind.convert(smooth_tensors(5, n, _SHAPES)))
            except AttributeError as error:
                raise RuleBroken(
                    f"the measure says that it depends on {list(found.depends)} and reads more: {error}; with "
                    f"{params!r}",
                    hint="add the parameter to depends, or leave depends out",
                ) from error


def _with_measure(what: Method | Step, found: Measure, params: Params) -> Method | Step:
    """Return a method or step that measures so, whatever parameters it is given."""
    if isinstance(what, Step):
        return replace(what, measure=lambda _: found)
    return replace(
        what,
        measure=lambda _: found,
        needs=lambda _, available: what.needs(params, available),
        scope=lambda _, shape: what.scope(params, shape),
    )


def _check_needs_of_step(step: Step, params: Params, kind: ArrayKind, n: int) -> None:
    tensors = kind.convert(smooth_tensors(5, n, _SHAPES))
    complete = run(step, params, tensors)
    found = step.measure(params)
    require(
        found is None or found.needs == {Input.DELTAS},
        f"the measure of a step reads {set(found.needs) if found else ''}; with {params!r}",
        hint="a step and its measure read the deltas and nothing else",
    )
    numel = _SHAPES["first"][0]
    only_base = Block(
        {Input.BASE: tensors["first"][Input.BASE]}, Masks(0, 0, "first", n, 0, numel),
        measured=complete.measured["first"], shape=(numel,),
    )  # fmt: skip
    try:
        step.apply(only_base, params)
    except LookupError:
        return
    raise RuleBroken(f"the step does not read the deltas; with {params!r}", hint="change block.deltas")


def check_second_results(method: Method) -> None:
    """Check that a method emits, for every element, what it says it does, and that its diagnosis can be written."""
    n = method.models[0]
    for params in typical_params(method.params, n):
        for kind in kinds(method):
            tensors = kind.convert(smooth_tensors(5, n, _SHAPES))
            outcome = run(method, params, tensors)
            for name, emitted in outcome.emitted.items():
                require(
                    emitted.keys() == set(method.emits),
                    f"emits says {sorted(method.emits)}, emitted are {sorted(emitted)}; with {params!r}",
                    hint="name in emits what merge gives to block.emit, always",
                )
                for key, values in emitted.items():
                    shape = tuple(values.shape)
                    require(
                        shape == _SHAPES[name] and np.isfinite(numbers_of(values)).all(),
                        f"'{key}' of a tensor of shape {_SHAPES[name]} has shape {shape}, or is not finite",
                        hint="emit one finite number per element",
                    )
            _check_counts_and_diagnosis(method, params, outcome.counts, outcome.sums, outcome.measured["first"])


def _check_counts_and_diagnosis(
    method: Method, params: Params, counts: dict[str, int], sums: dict[str, float], measured: object
) -> None:
    require(
        counts.keys() <= method.counts.keys(),
        f"counted is {sorted(counts)}, explained {sorted(method.counts)}",
        hint="say in counts what becomes of the elements that block.count counts",
    )
    diagnosis = method.diagnose(sums, measured, params)
    try:
        # What the report writes: no NaN, which is no JSON.
        json.dumps(dict(diagnosis.values), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RuleBroken(
            f"the values of the diagnosis cannot be written as JSON: {error}; with {params!r}",
            hint="give finite numbers, strings, booleans and lists of them",
        ) from error
    sentences = (*diagnosis.warnings, *diagnosis.notes)
    require(
        all(isinstance(each, str) and each for each in sentences),
        f"a diagnosis says things in sentences, not {sentences!r}",
        hint="give strings that are not empty",
    )
