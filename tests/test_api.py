"""The program from Python, as the package's own words describe it."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import merge_cli
from tests.checkpoints import read_checkpoint, write_checkpoint, write_recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory: two checkpoints and ``recipe.yml``, their average."""
    write_checkpoint(tmp_path / "one", {"w": [1.0, 2.0]})
    write_checkpoint(tmp_path / "two", {"w": [3.0, 6.0]})
    models = [{"model": name, "parameters": {"weight": 1}} for name in ("one", "two")]
    write_recipe(tmp_path / "recipe.yml", {"merge_method": "linear", "models": models})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_of_the_package_runs_as_it_stands(folder: Path) -> None:
    lines = re.findall(r"^    (.*)$", merge_cli.__doc__ or "", flags=re.MULTILINE)
    assert lines[0].startswith("from merge_cli import")
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    report = names["report"]
    assert isinstance(report, merge_cli.MergeReport)
    assert (report.out, report.method, report.models, report.parameters) == ("merged", "linear", 2, 2)
    assert read_checkpoint(folder / "merged")["w"].tolist() == [2, 4]


def test_a_recipe_may_be_given_as_its_text(folder: Path) -> None:
    text = (folder / "recipe.yml").read_text()
    plan = merge_cli.build_plan(merge_cli.load_recipe(text, overrides=["models.1.parameters.weight=3"]))
    merge_cli.merge(plan, folder / "merged")
    assert read_checkpoint(folder / "merged")["w"].tolist() == [2.5, 5]


def test_a_plan_may_be_carried_out_again(folder: Path) -> None:
    plan = merge_cli.build_plan(merge_cli.load_recipe("recipe.yml"))
    first = merge_cli.merge(plan, "first").files
    assert merge_cli.merge(plan, "second").files == first
    again = merge_cli.merge(plan, "second")
    assert again.unchanged
    assert again.files == first
    assert merge_cli.merge(plan, "second", force=True).files == first
    other = merge_cli.build_plan(merge_cli.load_recipe("recipe.yml", overrides=["models.1.parameters.weight=5"]))
    with pytest.raises(merge_cli.RecipeError, match="second exists"):
        merge_cli.merge(other, "second")


def test_strictly_a_warning_is_an_error_and_nothing_is_written(folder: Path) -> None:
    plan = merge_cli.build_plan(merge_cli.load_recipe("recipe.yml", overrides=["models.1.model=one"]))
    with pytest.raises(merge_cli.RecipeError, match="one is merged 2 times"):
        merge_cli.merge(plan, "merged", strict=True)
    assert not (folder / "merged").exists()
    assert any("one is merged 2 times" in warning for warning in merge_cli.merge(plan, "merged").warnings)


def test_every_public_name_is_there_and_documented() -> None:
    for name in merge_cli.__all__:
        found = getattr(merge_cli, name)
        assert name == "__version__" or inspect.getdoc(found), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        merge_cli.nonsense  # noqa: B018


def test_every_error_is_a_merge_error() -> None:
    kinds = [
        "RecipeError",
        "CheckpointError",
        "ResourceError",
        "VerificationError",
        "Interrupted",
        "WriteError",
        "BusyError",
    ]
    assert all(issubclass(getattr(merge_cli, kind), merge_cli.MergeError) for kind in kinds)


def test_asking_for_the_version_does_not_load_torch() -> None:
    program = "import sys, merge_cli; print(merge_cli.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{merge_cli.__version__} False\n"


def test_the_program_runs_as_a_module(folder: Path) -> None:
    command = [sys.executable, "-m", "merge_cli", "merge", "recipe.yml", "merged", "--no-fsync"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("merged: 2 parameters")
    assert done.stderr == ""
