"""Rules about the cut into blocks: it changes nothing, whatever it is."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from merge_cli.kernels import GRAIN
from merge_cli.methods.contract import Method, Params, Scope, Step
from merge_cli.testing.arrays import Tensors, same_bits, same_value
from merge_cli.testing.draws import any_shapes, difference, each_of, few_models, kinds, usual_models
from merge_cli.testing.harness import Setup, measure, run
from merge_cli.testing.parameters import any_params, typical_params
from merge_cli.testing.rules import RuleBroken, require
from merge_cli.testing.tensors import Shapes, smooth_tensors

_SUM_HINT = (
    "sum over models with merge_cli.kernels.sum_models or weighted_sum, and what needs a whole tensor take from a "
    "measure (measure_sums); a method that must see rows or tensors says so in its scope"
)


def check_any_block_size(what: Method | Step) -> None:
    """Check that any cut that the scope allows gives the same bits, counts, sums and measured values."""

    def example(data: st.DataObject) -> None:
        n = data.draw(few_models(what, 6))
        shapes = data.draw(any_shapes())
        tensors = smooth_tensors(data.draw(st.integers(0, 3)), n, shapes)
        params, cut = data.draw(any_params(what.params, n)), data.draw(st.integers(1, 2))
        for kind in kinds(what):
            _compare(what, params, kind.convert(tensors), shapes, cut)

    each_of(5, example, small=False)


def check_last_block(what: Method | Step) -> None:
    """Check that a last block of a few elements gives the bits that they have in a whole tensor.

    From five models on torch.sum adds the columns of (n, 1) and of (n, 4) to (n, 7) in orders of their own.
    """
    n = usual_models(what, 9)
    shapes = {"one more": (GRAIN + 1,), "five more": (GRAIN + 5,), "matrix": (65, 96)}
    for params in typical_params(what.params, n):
        for kind in kinds(what):
            _compare(what, params, kind.convert(smooth_tensors(7, n, shapes)), shapes, 1)


def _compare(what: Method | Step, params: Params, tensors: Tensors, shapes: Shapes, cut: int) -> None:
    whole = run(what, params, tensors, Setup(shapes=shapes))
    try:
        pieces = run(what, params, tensors, Setup(shapes=shapes, cut=cut))
    except Exception as error:
        raise RuleBroken(
            f"whole tensors of shapes {list(shapes.values())} are merged, and blocks of them are not: "
            f"{type(error).__name__}: {error}; with {params!r}",
            hint="a method that must see rows or tensors says so in its scope; others take any run of elements",
        ) from error
    for name in tensors:
        require(
            same_bits({name: whole.tensors[name]}, {name: pieces.tensors[name]}),
            f"the result depends on how a tensor is cut into blocks: '{name}' of shape {shapes[name]}, whole and cut, "
            f"differs in {difference(whole.tensors[name], pieces.tensors[name])}; with {params!r}",
            hint=_SUM_HINT,
        )
        require(
            same_bits(whole.emitted[name], pieces.emitted[name]),
            f"what is emitted for '{name}' depends on how a tensor is cut into blocks; with {params!r}",
            hint=_SUM_HINT,
        )
    found = (whole.counts, whole.sums, whole.measured), (pieces.counts, pieces.sums, pieces.measured)
    require(
        same_value(*found),
        f"counts, sums or measured values depend on how a tensor is cut into blocks: {found[0]} of whole tensors, "
        f"{found[1]} of blocks; with {params!r}",
        hint="count elements, block.add numbers per element, and combine parts of a measure exactly (measure_sums)",
    )


def check_measure_order(what: Method | Step) -> None:
    """Check that parts of a measure combine in any order and grouping to the same value."""
    shapes = {"first": (2 * GRAIN + 5,), "second": (100,), "third": (GRAIN,)}

    def example(data: st.DataObject) -> None:
        n = data.draw(few_models(what, 3))
        measuring = [params for params in typical_params(what.params, n) if what.measure(params)]
        if not measuring:
            return
        params, shuffle = data.draw(st.sampled_from(measuring)), data.draw(st.integers(0, 1000))
        numbers = smooth_tensors(data.draw(st.integers(0, 3)), n, shapes)
        for kind in kinds(what):
            tensors = kind.convert(numbers)
            in_order = measure(what, params, tensors, Setup(cut=1))
            shuffled = measure(what, params, tensors, Setup(cut=1, shuffle=shuffle))
            require(
                same_value(in_order, shuffled),
                f"the measure depends on the order in which its parts are combined: {in_order} in order, {shuffled} "
                f"shuffled; with {params!r}",
                hint="combine integers, exact sums (measure_sums) or collections whose order does not matter",
            )

    each_of(5, example, small=False)


def check_scope(what: Method | Step) -> None:
    """Check that tensors of any shape have a scope, and results of as many elements."""
    n = usual_models(what, 2)
    shapes = {"scalar": (), "vector": (5,), "matrix": (3, 4), "stack": (2, 3, 4)}
    for params in typical_params(what.params, n):
        if isinstance(what, Method):
            for shape in (*shapes.values(), (0, 7)):
                scope = what.scope(params, shape)
                require(
                    isinstance(scope, Scope),
                    f"scope gives {scope!r} for a tensor of shape {shape}",
                    hint="return Scope.ELEMENT, Scope.ROW or Scope.TENSOR for every shape",
                )
        for kind in kinds(what):
            tensors = kind.convert(smooth_tensors(3, n, shapes))
            for name, result in run(what, params, tensors, Setup(shapes=shapes)).tensors.items():
                expected = (math.prod(shapes[name]),) if isinstance(what, Method) else (n, math.prod(shapes[name]))
                if tuple(result.shape) != expected:
                    raise RuleBroken(
                        f"the result for a tensor of shape {shapes[name]} has shape {tuple(result.shape)}; "
                        f"expected {expected}",
                        hint="return one number per element, and for a step one row per model",
                    )
