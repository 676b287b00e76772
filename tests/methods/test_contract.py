"""The battery that every merge method and every preparing step passes; a new one is found by its file name."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge_cli.methods import find_method, find_step, method_names, step_names
from merge_cli.recipe import load_recipe
from merge_cli.testing import Check, Oracle, method_checks, step_checks
from tests.methods.oracles import oracle_names, oracle_of

CONFIGS = Path(__file__).parents[2] / "configs"


def named(name: str) -> Oracle:
    """Return the oracle of a method or a step, looked up when it is asked: one that is missing fails its own test."""
    return lambda tensors, params: oracle_of(name)(tensors, params)


EVERYTHING = {
    **{name: method_checks(find_method(name), oracle=named(name)) for name in method_names()},
    **{name: step_checks(find_step(name), oracle=named(name)) for name in step_names()},
}


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=f"{check}-{name}") for name, checks in EVERYTHING.items() for check in checks]
)
def test_a_method_or_step_keeps_the_rules(check: Check) -> None:
    check()


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_an_example_recipe(name: str) -> None:
    path = CONFIGS / f"{name}.yml"
    assert path.is_file(), f"add configs/{name}.yml, a recipe that uses {name}"
    recipe = load_recipe(path)
    assert recipe.merge_method == name
    assert recipe.origin.warnings == ()


def test_every_oracle_has_its_method_or_step() -> None:
    assert oracle_names() == {*method_names(), *step_names()}


def test_one_without_an_oracle_fails_with_what_to_add() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"add tests/methods/oracles/nameless\.py with a function oracle"):
        oracle_of("nameless")
