"""The definition of every method and step once more, found by its name: ``oracles/NAME.py`` has ``oracle``.

An oracle is a function ``(tensors, params) -> name -> numbers`` in loops over Python's own float64 numbers, as
:data:`merge_cli.testing.Oracle` says. Where several share a formula it stands in ``tests/oracle.py``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

import pytest

from merge_cli.testing import Oracle, PlainTensor

Model = dict[str, list[float]]


def oracle_names() -> set[str]:
    """Return what there is an oracle of."""
    return {module.name for module in pkgutil.iter_modules(__path__)}


def oracle_of(name: str) -> Oracle:
    """Return the oracle of a method or a step; fail where there is none, with what to add."""
    if name not in oracle_names():
        pytest.fail(
            f"there is no oracle of {name}: add tests/methods/oracles/{name}.py with a function oracle(tensors, "
            "params), loops over plain numbers written from its paper (merge_cli.testing.per_tensor helps); and "
            f"configs/{name}.yml, a recipe that uses it",
            pytrace=False,
        )
    oracle: Oracle = importlib.import_module(f"{__name__}.{name}").oracle
    return oracle


def of_base(tensors: Mapping[str, PlainTensor], what: str) -> Model:
    """Return one input of the base as a whole model."""
    return {name: getattr(tensor, what) for name, tensor in tensors.items()}


def of_each(tensors: Mapping[str, PlainTensor], what: str) -> list[Model]:
    """Return one input of each model as whole models."""
    n = len(next(iter(of_base(tensors, what).values())))
    return [{name: getattr(tensor, what)[i] for name, tensor in tensors.items()} for i in range(n)]
