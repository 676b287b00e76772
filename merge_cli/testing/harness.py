"""Methods and steps run over tensors held in memory, cut into blocks as the contract describes them.

The streaming engine is not needed: a method is a function of a block, and a block holds exactly what was declared.
"""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from merge_cli.kernels import GRAIN, Array
from merge_cli.methods.contract import (
    Block,
    Input,
    Masks,
    Measure,
    Measured,
    MeasureOver,
    Method,
    Params,
    Scope,
    Step,
    Totals,
)
from merge_cli.testing.arrays import Tensors, contiguous, join

_PER_MODEL = (Input.MODELS, Input.DELTAS, Input.FISHER, Input.CURVATURE, Input.GRADIENTS)
# Blocks of rows begin at a multiple of so many elements: vectorised and scalar code round differently.
_LANES = 64


@dataclass(frozen=True)
class Setup:
    """Setup of a run: everything here must leave the result as it is, except ``seed`` and ``withheld``.

    Attributes:
        cut: Elements per block in units of what the method's scope allows: grains, or the rows that end where lanes
            end; None for whole tensors.
        shuffle: Seed of the order in which the blocks of a measure are folded and its parts combined, and of the
            sample where it is content with one; None for one part and the order of the blocks.
        seed: Of the random masks.
        withheld: Inputs that are declared but not given.
        shapes: Of the tensors that are not vectors.
    """

    cut: int | None = None
    shuffle: int | None = None
    seed: int = 0
    withheld: frozenset[Input] = frozenset()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes:
        tensors: Per tensor, shape ``(numel,)`` from a method and ``(n, numel)`` from a step.
        emitted: Second results per tensor, by their name.
        counts: What was counted.
        sums: What was summed over the model.
        measured: What the measure found, per tensor.
    """

    tensors: dict[str, Array]
    emitted: dict[str, dict[str, Array]]
    counts: dict[str, int]
    sums: dict[str, float]
    measured: dict[str, Any]


@dataclass(frozen=True)
class _Collected:
    """Totals to which all blocks of a run add."""

    counts: Counter[str] = field(default_factory=Counter)
    sums: dict[str, array[float]] = field(default_factory=dict)


def run(
    what: Method | Step,
    params: Params,
    tensors: Tensors,
    setup: Setup = Setup(),
    *,
    measured: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run a method or a step over tensors that all have the same inputs.

    Args:
        what: The method or the step.
        params: Its parameters.
        tensors: Tensor name -> input -> numbers, in arrays of any kind.
        setup: How to run.
        measured: What the measure found; measured where not given.
    """
    collected = _Collected()
    needs = declared(what, params, tensors)
    found = measure(what, params, tensors, setup) if measured is None else dict(measured)
    result, emitted = {}, {}
    for name, inputs in tensors.items():
        blocks = list(_blocks(what, params, name, inputs, needs, setup, found[name], collected))
        result[name] = join([_work(what, block, params) for block in blocks])
        emitted[name] = {key: join([block.emitted[key] for block in blocks]) for key in blocks[0].emitted}
    sums = {key: math.fsum(parts) for key, parts in collected.sums.items()}
    return Outcome(result, emitted, dict(collected.counts), sums, found)


def declared(what: Method | Step, params: Params, tensors: Tensors) -> frozenset[Input]:
    """Return what a method or a step declares to read of these tensors."""
    given = frozenset(next(iter(tensors.values())))
    return what.needs(params, given) if isinstance(what, Method) else frozenset({Input.DELTAS})


def measure(what: Method | Step, params: Params, tensors: Tensors, setup: Setup = Setup()) -> dict[str, Any]:
    """Return what the measure finds for each tensor, None where there is no measure."""
    found = what.measure(params)
    if found is None:
        return dict.fromkeys(tensors)
    found = replace(found, needs=found.needs & declared(what, params, tensors))
    if found.over is MeasureOver.MODEL:
        return dict.fromkeys(tensors, _rounds(what, found, params, tensors, setup))
    return {name: _rounds(what, found, params, {name: inputs}, setup) for name, inputs in tensors.items()}


def block_numel(what: Method | Step, params: Params, shape: tuple[int, ...], cut: int | None) -> int:
    """Return how many elements a block holds of a tensor of this shape; see :class:`Setup`."""
    numel = math.prod(shape)
    scope = what.scope(params, shape) if isinstance(what, Method) else Scope.ELEMENT
    if cut is None or scope is Scope.TENSOR:
        return numel
    unit = GRAIN if scope is Scope.ELEMENT else math.lcm((shape or (1,))[-1], _LANES)
    return min(numel, cut * unit)


def _work(what: Method | Step, block: Block, params: Params) -> Array:
    if isinstance(what, Step):
        return what.apply(block, params)
    return what.merge(block, params).reshape(-1)


def _rounds(what: Method | Step, found: Measure, params: Params, tensors: Tensors, setup: Setup) -> Any:
    """Run the rounds of a measure until it has its value."""
    numel = sum(_numel(inputs) for inputs in tensors.values())
    state = found.start(Totals(_n(next(iter(tensors.values()))), numel), params)
    chance = random.Random(setup.shuffle)
    while not isinstance(state, Measured):
        blocks = [
            block
            for name, inputs in tensors.items()
            for block in _blocks(what, params, name, inputs, found.needs, setup, None, _Collected())
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
    what: Method | Step,
    params: Params,
    name: str,
    inputs: Mapping[Input, Array],
    needs: Iterable[Input],
    setup: Setup,
    measured: Any,
    collected: _Collected,
) -> Iterator[Block]:
    numel = _numel(inputs)
    shape = setup.shapes.get(name, (numel,))
    size = block_numel(what, params, shape, setup.cut)
    for start in range(0, numel, size):
        rows = {
            key: contiguous(inputs[key][..., start : start + size])
            for key in Input
            if key in needs and key not in setup.withheld
        }
        yield Block(
            rows,
            Masks(setup.seed, 0, name, _n(inputs), start, numel),
            measured=measured,
            counts=collected.counts,
            sums=collected.sums,
            shape=shape,
        )


def _n(inputs: Mapping[Input, Array]) -> int:
    return next(len(inputs[key]) for key in _PER_MODEL if key in inputs)


def _numel(inputs: Mapping[Input, Array]) -> int:
    return int(next(iter(inputs.values())).shape[-1])
