"""``init`` writes recipes that can be planned, and finds the base among fine-tunes."""

from pathlib import Path

import pytest
import torch
import yaml

from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import Input
from merge_cli.recipe import parse_recipe
from tests.checkpoints import write_checkpoint
from tests.cli.conftest import Run


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a base and three fine-tunes; the last has a head of another size."""
    monkeypatch.chdir(tmp_path)
    random = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.w": torch.randn(16, 16, generator=random) for i in range(3)}
    for name, rows in (("one", 3), ("middle", 3), ("two", 3), ("three", 5)):
        moved = 0.0 if name == "middle" else 0.05
        tensors = {key: value + moved * torch.randn(16, 16, generator=random) for key, value in base.items()}
        write_checkpoint(tmp_path / name, tensors | {"score.weight": torch.ones(rows, 16)})
    return tmp_path


def test_the_base_is_the_one_from_which_the_others_went_apart(run: Run, family: Path) -> None:
    done = run("init", "one", "middle", "two")
    assert done.code == 0, done.err
    recipe = yaml.safe_load((family / "recipe.yml").read_text())
    assert recipe["base_model"] == "./middle"
    assert [entry["model"] for entry in recipe["models"]] == ["./one", "./two"]
    assert recipe["merge_method"] == "task_arithmetic"
    assert recipe["dtype"] == "float32"
    planned = run("plan", "recipe.yml")
    assert (planned.code, "warning" in planned.err) == (0, False), planned.err


def test_what_differs_is_excluded_so_that_the_recipe_merges(run: Run, family: Path) -> None:
    assert run("init", "one", "middle", "two", "three").code == 0
    recipe = yaml.safe_load((family / "recipe.yml").read_text())
    assert recipe["exclude"] == ["score.weight"]
    assert recipe["merge_method"] == "ties"
    merged = run("merge", "recipe.yml", "out")
    assert merged.code == 0, merged.err


def test_a_base_that_is_named_is_taken(run: Run, family: Path) -> None:
    assert run("init", "middle", "one", "--base", "one", "-o", "r.yml").code == 0
    assert yaml.safe_load((family / "r.yml").read_text())["base_model"] == "./one"


def test_two_checkpoints_without_a_base_are_averaged(run: Run, family: Path) -> None:
    text = run("init", "one", "two", "-o", "-").out
    assert parse_recipe(text).merge_method == "linear"
    assert "name it with --base" in text
    assert not (family / "recipe.yml").exists()


def test_paths_start_from_where_the_recipe_is(run: Run, family: Path) -> None:
    (family / "recipes").mkdir()
    assert run("init", "one", "middle", "two", "-o", "recipes/r.yml").code == 0
    assert run("plan", "recipes/r.yml").code == 0


def test_a_recipe_that_exists_is_not_replaced_without_force(run: Run, family: Path) -> None:
    (family / "recipe.yml").write_text("mine")
    done = run("init", "one", "middle", "two")
    assert (done.code, (family / "recipe.yml").read_text()) == (2, "mine")
    assert "--force" in done.err
    assert run("init", "one", "middle", "two", "--force").code == 0


@pytest.mark.parametrize("method", method_names())
def test_without_checkpoints_it_prints_an_example_for_a_method(run: Run, method: str) -> None:
    done = run("init", "--method", method, "-o", "-")
    assert parse_recipe(done.out).merge_method == method


@pytest.mark.parametrize("method", method_names())
def test_every_method_without_files_of_its_own_gets_the_parameters_that_it_needs(
    run: Run, family: Path, method: str
) -> None:
    found = find_method(method)
    if found.needs(found.params.model_construct(), frozenset()) & {Input.FISHER, Input.CURVATURE}:
        pytest.skip("it needs Fishers")
    models = ["one", "two"][: found.models[1]]
    assert run("init", "middle", *models, "--base", "middle", "--method", method, "-o", "r.yml").code == 0
    planned = run("plan", "r.yml")
    assert planned.code == 0, planned.err


def test_one_checkpoint_is_no_merge(run: Run, family: Path) -> None:
    done = run("init", "one")
    assert done.code == 2
    assert "two checkpoints at least" in done.err


def test_gradient_matching_is_suggested_where_every_checkpoint_has_its_fisher(run: Run, family: Path) -> None:
    said = {"kind": "fisher", "examples": "8", "train_examples": "100"}
    squares = {f"layers.{i}.w": torch.full((16, 16), 0.01) for i in range(3)} | {"score.weight": torch.ones(3, 16)}
    for name in ("one", "middle"):
        write_checkpoint(family / f"fisher-{name}", squares, config=None, metadata=said)
    words = ("init", "one", "middle", "two", "-o", "-")
    assert parse_recipe(run(*words).out).merge_method == "task_arithmetic"
    write_checkpoint(family / "two" / "fisher", squares, config=None, metadata=said)
    recipe = parse_recipe(run(*words).out)
    assert recipe.merge_method == "gradient_matching"
    assert recipe.base_fisher == "./fisher-middle"
    assert [entry.fisher for entry in recipe.models] == ["./fisher-one", "./two/fisher"]
