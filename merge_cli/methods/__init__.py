"""Merge methods: one paper per file, and the file name is the recipe's ``merge_method``.

A method outside this package is registered under the entry-point group ``merge_cli.methods``; the entry point's name is
the ``merge_method`` and its object a :class:`~merge_cli.methods.contract.Method`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from merge_cli.errors import RecipeError
from merge_cli.methods import prepare
from merge_cli.methods.contract import Method, Step
from merge_cli.text import did_you_mean

_GROUP = "merge_cli.methods"


@cache
def method_names() -> tuple[str, ...]:
    """Return the names of all methods, in alphabetical order."""
    ours = {module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg}
    return tuple(sorted(ours | _outside().keys()))


@cache
def step_names() -> tuple[str, ...]:
    """Return the names of all preparing steps, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(prepare.__path__)))


@cache
def find_method(name: str) -> Method:
    """Return the method of this name.

    Raises:
        RecipeError: If there is none.
    """
    if name not in method_names():
        raise RecipeError(
            f"merge_method: there is no method '{name}'",
            hint=did_you_mean(name, method_names()) or f"there are {', '.join(method_names())}",
        )
    outside = _outside().get(name)
    found = outside.load() if outside else importlib.import_module(f"{__name__}.{name}").METHOD
    if not isinstance(found, Method):
        raise TypeError(f"the entry point '{name}' in group {_GROUP} is not a Method but {type(found).__name__}")
    return found


@cache
def _outside() -> dict[str, EntryPoint]:
    """Return the methods that other packages register; looking through all that is installed takes milliseconds."""
    return {entry.name: entry for entry in entry_points(group=_GROUP)}


def find_step(name: str) -> Step:
    """Return the preparing step of this name, one of :func:`step_names`."""
    step = importlib.import_module(f"{prepare.__name__}.{name}").STEP
    assert isinstance(step, Step)
    return step
