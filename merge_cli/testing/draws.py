"""Draws of the checks: how many models, tensors of which shapes, and how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from merge_cli.kernels import GRAIN, Array
from merge_cli.methods.contract import Method, Step
from merge_cli.testing.arrays import ArrayKind, cpu_kinds, numbers_of
from merge_cli.testing.rules import RuleBroken


def each_of(count: int, body: Callable[[st.DataObject], None], *, small: bool = True) -> None:
    """Call a function with so many examples, the same ones in every run.

    Of those that fail the simplest is looked for, and shown, where they are ``small``; otherwise the first is shown.
    """

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink] if small else [Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def example(data: st.DataObject) -> None:
        body(data)

    example()


def kinds(what: Method | Step) -> list[ArrayKind]:
    """Return the kinds of arrays to try; see :func:`cpu_kinds`.

    Raises:
        RuleBroken: If there are none.
    """
    found = cpu_kinds(what)
    if not found:
        raise RuleBroken(
            "this one takes torch tensors only, and torch is not installed",
            hint="install torch; or keep to operators and merge_cli.kernels, and declare numpy=True",
        )
    return found


def few_models(what: Method | Step, most: int) -> st.SearchStrategy[int]:
    """Return a strategy of how many models to merge: what the method takes, up to a number."""
    fewest, largest = models_of(what)
    return st.integers(fewest, min(max(most, fewest), largest or most))


def usual_models(what: Method | Step, wanted: int) -> int:
    """Return how many models to merge: so many, or the nearest number that the method takes."""
    fewest, largest = models_of(what)
    return max(fewest, min(wanted, largest or wanted))


def models_of(what: Method | Step) -> tuple[int, int | None]:
    """Return the fewest and the most models that a method or a step takes."""
    return what.models if isinstance(what, Method) else (1, None)


def any_shapes() -> st.SearchStrategy[dict[str, tuple[int, ...]]]:
    """Return a strategy of shapes: a vector of a grain or two, a matrix, and a small vector.

    The first has the ends that vectorised code is most likely to get wrong.
    """
    tail = st.one_of(st.integers(1, 9), st.sampled_from([0, 31, 32, 33, 1000]))
    large = st.builds(lambda grains, more: (grains * GRAIN + more,), st.integers(1, 2), tail)
    matrix = st.tuples(st.integers(1, 130), st.sampled_from([1, 7, 33, 96]))
    small = st.tuples(st.integers(1, 40))
    return st.fixed_dictionaries({"large": large, "matrix": matrix, "small": small})


def difference(left: Array, right: Array) -> str:
    """Say where two results differ first, for a message."""
    one, other = numbers_of(left), numbers_of(right)
    if one.shape != other.shape:
        return f"shapes {one.shape} and {other.shape}"
    unequal = np.flatnonzero((one.view(np.int32) if one.dtype == np.float32 else one).ravel() != _like(other).ravel())
    if len(unequal) == 0:
        return "nothing"
    first = int(unequal[0])
    return (
        f"{len(unequal)} of {one.size} numbers, the first at {first}: "
        f"{one.ravel()[first]!r} and {other.ravel()[first]!r}"
    )


def _like(numbers: Any) -> Any:
    return numbers.view(np.int32) if numbers.dtype == np.float32 else numbers
