"""Whatever call of the system fails: a clear error of the right kind or the right result, and never a wrong file."""

from pathlib import Path

import pytest

from tests.crash.cases import RECIPES, TINY, write_models
from tests.crash.faults import WAYS, every_fault, inject, scene


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("inputs"), TINY)


# Every so-many-th of all the pairs of a call and a fault; `python -m tests.crash.faults` takes them all.
@pytest.mark.parametrize(
    ("name", "step", "first"), [("linear", 23, 0), ("ties of the model", 41, 3), ("gradient_matching", 71, 5)]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_fault_ends_in_an_error_or_in_the_right_result(
    inputs: Path, tmp_path: Path, name: str, step: int, first: int, way: str
) -> None:
    made = scene(tmp_path / "work", inputs, RECIPES[name], **WAYS[way])
    pairs = list(every_fault(made.calls))[first::step]
    outcomes = {inject(made, number, fault).partition(",")[0] for number, fault in pairs}
    # That each is the right one for its fault is checked where it is injected.
    assert len(outcomes) > 2


@pytest.mark.parametrize("way", ["in one step", "by two renames"])
def test_every_fault_around_the_commit_leaves_the_older_output_or_the_new_one(
    inputs: Path, tmp_path: Path, way: str
) -> None:
    made = scene(tmp_path / "work", inputs, RECIPES["copies"], replaces=True, exchanges=way == "in one step")
    first = next(call.number for call in made.calls if call.path.name == ".replacing")
    pairs = [(number, fault) for number, fault in every_fault(made.calls) if number >= first]
    assert len(pairs) > 40
    for number, fault in pairs:
        inject(made, number, fault)
