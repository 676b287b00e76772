"""Methods and steps are found by their file names and by entry points."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints

import pytest

import merge_cli.methods as methods
from merge_cli.errors import RecipeError
from merge_cli.methods.contract import Method, Step


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """A list whose entries are found as if other packages had registered them."""
    registered: list[EntryPoint] = []

    def entry_points(**wanted: str) -> EntryPoints:
        return EntryPoints(registered).select(**wanted)

    caches = (methods.method_names, methods.step_names, methods.find_method, methods._outside)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(methods, "entry_points", entry_points)
    yield registered
    for cache in caches:
        cache.cache_clear()


def test_names_are_those_of_the_files_in_alphabetical_order() -> None:
    names = methods.method_names()
    assert list(names) == sorted(names)
    assert "ties" in names
    assert "contract" not in names
    assert "prepare" not in names
    assert methods.step_names() == ("dare", "keep_largest")


@pytest.mark.parametrize("name", methods.method_names())
def test_every_name_leads_to_a_method(name: str) -> None:
    assert isinstance(methods.find_method(name), Method)


@pytest.mark.parametrize("name", methods.step_names())
def test_every_step_name_leads_to_a_step(name: str) -> None:
    assert isinstance(methods.find_step(name), Step)


def test_a_misspelt_method_is_answered_with_the_closest_name() -> None:
    with pytest.raises(RecipeError, match="there is no method 'task_aritmetic'") as failure:
        methods.find_method("task_aritmetic")
    assert failure.value.hint == "did you mean 'task_arithmetic'?"


def test_an_unlike_name_is_answered_with_all_names() -> None:
    with pytest.raises(RecipeError) as failure:
        methods.find_method("zzz")
    assert all(name in str(failure.value.hint) for name in methods.method_names())


@pytest.mark.parametrize("name", ["contract", "prepare", "__init__", ""])
def test_what_is_no_method_file_is_no_method(name: str) -> None:
    with pytest.raises(RecipeError):
        methods.find_method(name)


def test_an_entry_point_adds_a_method_under_its_name(outside: list[EntryPoint]) -> None:
    outside.append(EntryPoint("my_average", "merge_cli.methods.linear:METHOD", "merge_cli.methods"))
    assert "my_average" in methods.method_names()
    assert methods.find_method("my_average") is methods.find_method("linear")


def test_an_entry_point_of_another_group_adds_nothing(outside: list[EntryPoint]) -> None:
    outside.append(EntryPoint("my_average", "merge_cli.methods.linear:METHOD", "another.group"))
    assert "my_average" not in methods.method_names()


def test_an_entry_point_that_is_no_method_is_refused_by_its_name(outside: list[EntryPoint]) -> None:
    outside.append(EntryPoint("my_average", "merge_cli.methods.linear:linear", "merge_cli.methods"))
    with pytest.raises(TypeError, match=r"'my_average' in group merge_cli\.methods is not a Method but function"):
        methods.find_method("my_average")
