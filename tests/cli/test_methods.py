"""The methods describe themselves."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from merge_cli.methods import find_method, method_names
from merge_cli.recipe import load_recipe
from tests.checkpoints import write_checkpoint
from tests.cli.conftest import Run


def example(printed: str) -> str:
    """Return the recipe at the end of what is printed."""
    return printed.partition("\nexample:\n\n")[2]


def test_they_are_listed_one_to_a_line(run: Run) -> None:
    heading, *lines = run("methods").out.splitlines()
    assert heading.split() == ["method", "what", "it", "does", "parameters"]
    assert [line.split()[0] for line in lines] == list(method_names())
    assert json.loads(run("methods", "--json").out)["methods"] == {
        name: find_method(name).summary for name in method_names()
    }


@pytest.mark.parametrize("name", method_names())
def test_each_prints_what_one_must_know_to_use_it(run: Run, name: str) -> None:
    method, printed = find_method(name), run("methods", name).out
    assert printed.startswith(f"{name}: {method.summary}\n\n  {method.equation}\n")
    assert f"source: {method.source}" in printed
    assert method.differs in printed
    rows = {line.split()[0] for line in printed.splitlines() if line.strip()}
    for key, field in method.params.model_fields.items():
        assert (field.alias or key) in rows
        assert str(field.description) in printed


@pytest.mark.parametrize("name", method_names())
def test_each_describes_itself_in_json(run: Run, name: str) -> None:
    content = json.loads(run("methods", name, "--json").out)
    assert content["name"] == name
    keys = {field.alias or key for key, field in find_method(name).params.model_fields.items()}
    assert set(content["parameters"]["properties"]) == keys


@pytest.mark.parametrize("name", method_names())
def test_the_example_that_each_prints_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    printed = example(run("methods", name).out)
    recipe = load_recipe(printed)
    assert recipe.merge_method == name
    assert recipe.origin.warnings == ()
    content = yaml.safe_load(printed)
    references = [content.get("base_model"), content.get("base_fisher")]
    references += [entry.get(key) for entry in content["models"] for key in ("model", "fisher", "gradient")]
    monkeypatch.chdir(tmp_path)
    for i, reference in enumerate(filter(None, references)):
        write_checkpoint(tmp_path / reference, {"w": torch.full((3,), 1.0 + i)}, metadata={"train_examples": "10"})
    (tmp_path / "r.yml").write_text(printed)
    done = run("merge", "r.yml", "out")
    assert done.code == 0, done.err


def test_required_parameters_are_marked_and_others_show_their_default(run: Run) -> None:
    rows = {line.split()[0]: line for line in run("methods", "ties").out.splitlines() if line.strip()}
    assert rows["weight"].split()[1] == "required"
    assert rows["density"].split()[1] == "1.0"
    assert "number in [0, 1], per model" in rows["density"]
    assert "tensor | model, one value" in rows["trim"]
    rows = {line.split()[0]: line for line in run("methods", "slerp").out.splitlines() if line.strip()}
    assert rows["t"].split()[1] == "required"
