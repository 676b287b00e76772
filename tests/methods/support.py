"""Runs methods and steps over tensors held in memory, cut into blocks, and makes parameters and tensors for them.

The streaming engine is not needed: a method is a function of a block, and :func:`run` builds the blocks as the contract
describes them, with exactly the inputs that were declared.
"""

from __future__ import annotations

import functools
import math
import random
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union

import annotated_types
import numpy as np
import pytest
import torch
from hypothesis import reject
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from merge_cli.kernels import GRAIN
from merge_cli.methods import find_method, find_step
from merge_cli.methods.contract import (
    Block,
    Input,
    Masks,
    Measure,
    Measured,
    MeasureOver,
    Method,
    Params,
    Step,
    Totals,
    field_default,
    is_per_model,
)

Inputs = Mapping[Input, Tensor]
Tensors = Mapping[str, Inputs]
Numbers = Sequence[float]
PER_MODEL = (Input.MODELS, Input.DELTAS, Input.FISHER, Input.CURVATURE, Input.GRADIENTS)


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """How to run: everything here must leave the result as it is, except ``seed`` and ``withheld``.

    Attributes:
        block: Elements per block, a multiple of GRAIN; None for whole tensors.
        shuffle: Seed of the order in which the blocks of a measure are folded and its parts combined, and of the
            sample where it is content with one; None for one part and the order of the blocks.
        seed: Of the random masks.
        withheld: Inputs that are declared but not given.
    """

    block: int | None = None
    shuffle: int | None = None
    seed: int = 0
    withheld: frozenset[Input] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        tensors: Per tensor, shape ``(numel,)`` from a method and ``(n, numel)`` from a step.
        emitted: Second results per tensor, by their name.
        counts: What was counted.
        sums: What was summed over the model.
        measured: What the measure found, per tensor.
    """

    tensors: dict[str, Tensor]
    emitted: dict[str, dict[str, Tensor]]
    counts: dict[str, int]
    sums: dict[str, float]
    measured: dict[str, Any]


WHOLE = Setup()


def run(what: Method | Step, params: Params, tensors: Tensors, setup: Setup = WHOLE) -> Outcome:
    """Run a method or a step over tensors that all have the same inputs."""
    counts: Counter[str] = Counter()
    sums: dict[str, Any] = {}
    work = what.merge if isinstance(what, Method) else what.apply
    needs = declared(what, params, tensors)
    measured = measure(what, params, tensors, setup)
    result, emitted = {}, {}
    for name, inputs in tensors.items():
        blocks = list(_blocks(name, inputs, needs, setup, measured[name], counts, sums))
        result[name] = torch.cat([work(block, params) for block in blocks], dim=-1)
        emitted[name] = {key: torch.cat([block.emitted[key] for block in blocks]) for key in blocks[0].emitted}
    return Outcome(result, emitted, dict(counts), {key: math.fsum(parts) for key, parts in sums.items()}, measured)


def declared(what: Method | Step, params: Params, tensors: Tensors) -> frozenset[Input]:
    """Return what a method or a step declares to read of these tensors."""
    available = frozenset(next(iter(tensors.values())))
    return what.needs(params, available) if isinstance(what, Method) else frozenset({Input.DELTAS})


def measure(what: Method | Step, params: Params, tensors: Tensors, setup: Setup = WHOLE) -> dict[str, Any]:
    """Return what the measure finds for each tensor, None where there is no measure."""
    found = what.measure(params)
    if found is None:
        return dict.fromkeys(tensors)
    found = replace(found, needs=found.needs & declared(what, params, tensors))
    if found.over is MeasureOver.MODEL:
        return dict.fromkeys(tensors, _rounds(found, params, tensors, setup))
    return {name: _rounds(found, params, {name: inputs}, setup) for name, inputs in tensors.items()}


def _rounds(found: Measure, params: Params, tensors: Tensors, setup: Setup) -> Any:
    numel = sum(_numel(inputs) for inputs in tensors.values())
    state = found.start(Totals(_n(next(iter(tensors.values()))), numel), params)
    chance = random.Random(setup.shuffle)
    while not isinstance(state, Measured):
        blocks = [
            block
            for name, inputs in tensors.items()
            for block in _blocks(name, inputs, found.needs, setup, None, Counter(), {})
        ]
        if setup.shuffle is not None:
            chance.shuffle(blocks)
            if found.sample(state):
                blocks = blocks[: chance.randint(1, len(blocks))]
        parts: list[Any] = []
        for block in blocks:
            # Either one part goes on growing, or another is begun and combined later.
            part = parts.pop() if parts and (setup.shuffle is None or chance.random() < 0.5) else None
            parts.append(found.fold(state, part, block, params))
        while len(parts) > 1:
            at = chance.randrange(len(parts) - 1)
            parts[at : at + 2] = [found.combine(parts[at], parts[at + 1])]
        state = found.finish(state, parts[0])
    return state.value


def _blocks(
    name: str,
    inputs: Inputs,
    needs: Iterable[Input],
    setup: Setup,
    measured: Any,
    counts: Counter[str],
    sums: dict[str, Any],
) -> Iterator[Block]:
    numel = _numel(inputs)
    step = setup.block or numel
    assert step == numel or step % GRAIN == 0, "blocks start at multiples of GRAIN"
    for start in range(0, numel, step):
        rows = {
            need: inputs[need][..., start : start + step].contiguous()
            for need in Input
            if need in needs and need not in setup.withheld
        }
        yield Block(
            rows,
            Masks(setup.seed, 0, name, _n(inputs), start, _numel(inputs)),
            measured=measured,
            counts=counts,
            sums=sums,
        )


def _n(inputs: Inputs) -> int:
    return next(len(inputs[need]) for need in PER_MODEL if need in inputs)


def _numel(inputs: Inputs) -> int:
    return next(iter(inputs.values())).shape[-1]


# --- small tensors, written out ---------------------------------------------------------------------------------------


def family(
    *,
    models: Sequence[Numbers],
    base: Numbers | None = None,
    fisher: Sequence[Numbers] | None = None,
    base_fisher: Numbers | None = None,
    curvature: Sequence[Numbers] | None = None,
    base_curvature: Numbers | None = None,
    gradients: Sequence[Numbers] | None = None,
) -> dict[Input, Tensor]:
    """Return the inputs of one tensor; deltas are there where the base is."""
    named = {
        Input.MODELS: models,
        Input.BASE: base,
        Input.FISHER: fisher,
        Input.BASE_FISHER: base_fisher,
        Input.CURVATURE: curvature,
        Input.BASE_CURVATURE: base_curvature,
        Input.GRADIENTS: gradients,
    }
    inputs = {need: _float32(rows) for need, rows in named.items() if rows is not None}
    if base is not None:
        inputs[Input.DELTAS] = inputs[Input.MODELS] - inputs[Input.BASE]
    return inputs


def _float32(rows: Any) -> Tensor:
    return rows.float().clone() if isinstance(rows, Tensor) else torch.tensor(np.asarray(rows), dtype=torch.float32)


def merged(method: str, inputs: Inputs, /, *, seed: int = 0, **values: Any) -> Tensor:
    """Merge one tensor; parameters that are not given have their defaults."""
    return merged_model(method, {"tensor": inputs}, seed=seed, **values)["tensor"]


def merged_model(method: str, tensors: Tensors, /, *, seed: int = 0, **values: Any) -> dict[str, Tensor]:
    """Merge several tensors."""
    found = find_method(method)
    n = _n(next(iter(tensors.values())))
    return run(found, made(found.params, n, **values), tensors, Setup(seed=seed)).tensors


def stepped(step: str, inputs: Inputs, /, *, seed: int = 0, **values: Any) -> dict[Input, Tensor]:
    """Return the inputs of one tensor after a preparing step."""
    found = find_step(step)
    params = made(found.params, _n(inputs), **values)
    deltas = run(found, params, {"tensor": inputs}, Setup(seed=seed)).tensors["tensor"]
    return {**inputs, Input.DELTAS: deltas, Input.MODELS: deltas + inputs[Input.BASE]}


def made(kind: type[Params], n: int, **values: Any) -> Params:
    """Return parameters for n models: the values given, the rest at their defaults."""
    for name, field in kind.model_fields.items():
        if is_per_model(field) and name not in values:
            default = field_default(field)
            if default is not None or _takes_none(field):
                values[name] = (default,) * n
    return kind(**values)


def _takes_none(field: FieldInfo) -> bool:
    element = _element(field)
    return type(None) in typing.get_args(element)


# --- parameters, made from the fields ---------------------------------------------------------------------------------


def any_params(kind: type[Params], n: int) -> st.SearchStrategy[Params]:
    """Valid parameters for n models; numbers are multiples of 1/8, which float32 holds exactly."""

    @st.composite
    def draw_params(draw: st.DrawFn) -> Params:
        values = {name: draw(_values(name, field, n)) for name, field in kind.model_fields.items()}
        try:
            return kind(**values)
        except ValidationError:
            reject()

    return draw_params()


def typical_params(kind: type[Params], n: int) -> list[Params]:
    """Return the defaults, and beside them every other value that a field with few values can have.

    Fields without a default, and those whose default switches something off, have a number in between.
    """
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name in _IN_BETWEEN:
            values[name] = (_IN_BETWEEN[name],) * n if is_per_model(field) else _IN_BETWEEN[name]
        elif field.is_required() and not is_per_model(field):
            pytest.fail(f"tests.methods.support._IN_BETWEEN has no value for the parameter {name} of {kind.__name__}")
    typical = made(kind, n, **values)
    others = []
    for name, field in kind.model_fields.items():
        for choice in [] if is_per_model(field) else _choices(field.annotation):
            if choice != getattr(typical, name):
                others.append(made(kind, n, **{**values, name: choice}))
    return [typical, *others]


_IN_BETWEEN = {
    "weight": 0.5,
    "density": 0.5,
    "drop_rate": 0.5,
    "t": 0.25,
    "scale": 0.75,
    "prior_precision": 0.5,
}

# Parameters whose valid values do not show in their type.
_BY_NAME: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "favour": lambda n: st.one_of(st.integers(0, n - 1), st.just("none")),
}


def _values(name: str, field: FieldInfo, n: int) -> st.SearchStrategy[Any]:
    if name in _BY_NAME:
        return _BY_NAME[name](n)
    if is_per_model(field):
        return st.tuples(*[_of_type(_element(field), [], name)] * n)
    return _of_type(field.annotation, field.metadata, name)


def _element(field: FieldInfo) -> Any:
    arguments = typing.get_args(field.annotation)
    assert arguments[1:] == (...,), "a per-model field is a tuple[..., ...]"
    return arguments[0]


def _of_type(kind: Any, limits: list[Any], name: str) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        extra = [each.metadata if isinstance(each, FieldInfo) else [each] for each in arguments[1:]]
        return _of_type(arguments[0], sum(extra, limits), name)
    if origin in (Union, types.UnionType):
        return st.one_of([_of_type(each, limits, name) for each in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is float:
        return _eighths(limits)
    pytest.fail(
        f"no generator knows the parameter {name} of type {kind}; teach tests.methods.support._of_type the type, "
        "or _BY_NAME the name"
    )


def _eighths(limits: list[Any]) -> st.SearchStrategy[float]:
    low, high = -16, 16
    for limit in limits:
        if isinstance(limit, annotated_types.Ge):
            low = round(8 * limit.ge)
        if isinstance(limit, annotated_types.Gt):
            low = round(8 * limit.gt) + 1
        if isinstance(limit, annotated_types.Le):
            high = round(8 * limit.le)
        if isinstance(limit, annotated_types.Lt):
            high = round(8 * limit.lt) - 1
    return st.integers(low, high).map(lambda k: k / 8)


def _choices(kind: Any) -> list[Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return [choice for each in arguments for choice in _choices(each)]
    if origin is Literal:
        return list(arguments)
    return [False, True] if kind is bool else []


# --- tensors, made from a seed ----------------------------------------------------------------------------------------


def any_sizes() -> st.SearchStrategy[dict[str, int]]:
    """One tensor of a grain or two, with the ends that vectorised code is most likely to get wrong; a small one."""
    tail = st.one_of(st.integers(1, 9), st.sampled_from([0, 31, 32, 33, 1000]))
    large = st.builds(lambda grains, more: grains * GRAIN + more, st.integers(1, 2), tail)
    return st.builds(lambda first, second: {"large": first, "small": second}, large, st.integers(1, 40))


@functools.cache
def _normal_numbers() -> Tensor:
    return torch.randn(200_000, generator=torch.Generator().manual_seed(0))


def smooth_tensors(seed: int, n: int, sizes: Mapping[str, int]) -> dict[str, dict[Input, Tensor]]:
    """Random real numbers without repetition within a vector: every input that there is, for n models."""
    source = random.Random(seed)

    def vector(numel: int) -> Tensor:
        start = source.randrange(len(_normal_numbers()) - numel)
        return _normal_numbers()[start : start + numel]

    def rows(numel: int) -> Tensor:
        return torch.stack([vector(numel) for _ in range(n)])

    tensors = {}
    for name, numel in sizes.items():
        base = vector(numel).clone()
        models = base + rows(numel)
        tensors[name] = {
            Input.MODELS: models,
            Input.BASE: base,
            Input.DELTAS: models - base,
            Input.FISHER: rows(numel).square(),
            Input.BASE_FISHER: vector(numel).square(),
            Input.CURVATURE: rows(numel).square() * 100,
            Input.BASE_CURVATURE: vector(numel).square() * 100,
            Input.GRADIENTS: rows(numel),
        }
    return tensors


def coarse_tensors(seed: int, n: int, sizes: Mapping[str, int]) -> dict[str, dict[Input, Tensor]]:
    """Small multiples of 1/8 with many zeros, repetitions and exact cancellations; float32 adds them without rounding.

    Now and then a whole Fisher is zero, as that of a model that no example reached.
    """
    source = random.Random(seed)

    def eighths(rows: int | None, numel: int, low: int, high: int) -> Tensor:
        numbers = [source.choice([0, source.randint(low, high)]) / 8 for _ in range((rows or 1) * numel)]
        flat = torch.tensor(numbers, dtype=torch.float32)
        return flat if rows is None else flat.reshape(rows, numel)

    dead = [source.random() < 0.15 for _ in range(n)]
    tensors = {}
    for name, numel in sizes.items():
        base, deltas = eighths(None, numel, -64, 64), eighths(n, numel, -4, 4)
        fisher = eighths(n, numel, 0, 16)
        fisher[dead] = 0
        tensors[name] = {
            Input.MODELS: base + deltas,
            Input.BASE: base,
            Input.DELTAS: deltas,
            Input.FISHER: fisher,
            Input.BASE_FISHER: eighths(None, numel, 0, 16),
            Input.CURVATURE: eighths(n, numel, 0, 32),
            Input.BASE_CURVATURE: eighths(None, numel, 0, 32),
            Input.GRADIENTS: eighths(n, numel, -8, 8),
        }
    return tensors


def few_models(method: Method | Step, most: int) -> st.SearchStrategy[int]:
    """How many models to merge: what the method takes, up to a number."""
    fewest, largest = method.models if isinstance(method, Method) else (1, None)
    return st.integers(fewest, min(most, largest or most))


def bits(tensor: Tensor) -> list[int]:
    """Return the bit patterns, which unlike values tell 0.0 from -0.0."""
    return tensor.contiguous().view(torch.int32).flatten().tolist()


def assert_close(left: Any, right: Any, *, rtol: float = 1e-5, atol: float = 3e-6) -> None:
    """Compare tensors, arrays or lists in float64, element by element."""
    pair = (each.double().cpu().numpy() if isinstance(each, Tensor) else np.asarray(each) for each in (left, right))
    np.testing.assert_allclose(*pair, rtol=rtol, atol=atol)


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two results are the same to the bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.int32), right[name].view(torch.int32)) for name in left
    )


def withholding(setup: Setup, need: Input) -> Setup:
    """Return the setup with one more input that is declared but not given."""
    return replace(setup, withheld=setup.withheld | {need})
