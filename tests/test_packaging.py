"""What the package says of itself, and the versions that it names as tested."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_EXTRAS = _PROJECT["optional-dependencies"]
_NAMED = [*_PROJECT["dependencies"], *(each for extra in _EXTRAS.values() for each in extra)]


def pinned() -> dict[str, str]:
    lines = (_ROOT / "configs" / "tested.txt").read_text(encoding="utf-8").splitlines()
    parts = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in parts}


@pytest.mark.parametrize("text", [each for each in _NAMED if Requirement(each).name != _PROJECT["name"]])
def test_what_was_tested_is_what_the_package_asks_for(text: str) -> None:
    wanted = Requirement(text)
    version = pinned()[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version), f"{text} does not admit the tested {version}"
    assert [each.operator for each in wanted.specifier] == [">="], "a bound above needs a reason"


def test_the_distribution_has_not_the_name_of_another_one() -> None:
    assert _PROJECT["name"] == "merge-cli-nn"
    assert list(_PROJECT["scripts"]) == ["merge-cli"]
