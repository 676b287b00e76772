"""The manifest proves what a checkpoint was made from, and the digests what it is."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_cli import __version__
from merge_cli.plan import MergePlan, build_plan
from merge_cli.recipe import Recipe, parse_recipe
from merge_cli.report import MergeReport
from merge_cli.run import merge
from tests.checkpoints import write_checkpoint
from tests.report.conftest import RECIPE


@pytest.fixture(scope="module")
def manifest(report: MergeReport, folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "out" / "merge_manifest.json").read_text())
    assert isinstance(content, dict)
    return content


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_says_what_was_done(manifest: dict[str, Any], plan: MergePlan) -> None:
    assert manifest["tool"] == f"merge-cli {__version__}"
    assert manifest["plan_sha256"] == plan.digest
    assert manifest["method"]["name"] == "ties"
    assert "2306.01708" in manifest["method"]["source"]
    assert manifest["seed"] == 7
    assert manifest["recipe"] == RECIPE
    assert manifest["overrides"] == ["parameters.lambda=0.5"]
    assert manifest["steps"] == [{"name": "dare", "drop_rate": 0.5, "rescale": True}]
    assert manifest["tensors"]["merged"] == 2
    assert sorted(manifest["tensors"]["copied"]) == ["head", "ids"]


def test_it_has_the_parameters_as_they_were_resolved(manifest: dict[str, Any]) -> None:
    found = {name: group["values"] for group in manifest["parameters"] for name in group["tensors"]}
    assert found["layers.0.w"]["weight"] == [0.5, 1]
    assert found["layers.1.w"]["weight"] == [1, 1]
    assert found["layers.0.w"]["density"] == [0.5, 1]
    assert found["layers.0.w"]["lambda"] == 0.5


def test_it_identifies_every_input(manifest: dict[str, Any], folder: Path) -> None:
    assert [(each["role"], each["reference"]) for each in manifest["inputs"]] == [
        ("base", "base"),
        ("model 0", "one"),
        ("model 1", "two"),
    ]
    for each in manifest["inputs"]:
        path = folder / each["reference"] / "model.safetensors"
        raw = path.read_bytes()
        header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
        assert each["files"] == [
            {
                "name": "model.safetensors",
                "size": path.stat().st_size,
                "mtime_ns": path.stat().st_mtime_ns,
                "header_sha256": hashlib.sha256(header).hexdigest(),
                "sample": each["files"][0]["sample"],
                "sha256": hashlib.sha256(raw).hexdigest(),
            }
        ]


def test_it_holds_the_digest_of_every_file_but_itself(
    manifest: dict[str, Any], report: MergeReport, folder: Path
) -> None:
    weights = {path.name: sha256(path) for path in (folder / "out").glob("*.safetensors")}
    assert len(weights) > 1
    assert report.files == weights
    itself = {"merge_manifest.json", "SHA256SUMS"}
    others = {path.name: sha256(path) for path in (folder / "out").iterdir() if path.name not in itself}
    assert manifest["files"] == others


def test_no_file_of_the_output_tells_where_on_this_machine_it_was_made(report: MergeReport, folder: Path) -> None:
    for path in (folder / "out").iterdir():
        assert str(folder).encode() not in path.read_bytes(), path.name


def test_the_digests_of_all_files_are_what_sha256sum_checks(report: MergeReport, folder: Path) -> None:
    out = folder / "out"
    listed = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert listed == {path.name: sha256(path) for path in out.iterdir() if path.name != "SHA256SUMS"}
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, capture_output=True, check=False)
    assert done.returncode == 0


def test_the_output_is_all_there_and_nothing_else(report: MergeReport, folder: Path) -> None:
    names = {path.name for path in (folder / "out").iterdir()}
    assert {name for name in names if not name.endswith(".safetensors")} == {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "merge_manifest.json",
        "model.safetensors.index.json",
        "recipe.yml",
        "tokenizer.json",
    }
    assert (folder / "out" / "tokenizer.json").read_text() == '"base"'
    assert json.loads((folder / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert not (folder / "out.partial").exists()


def test_the_index_names_every_tensor_in_its_file(report: MergeReport, folder: Path) -> None:
    from safetensors import safe_open

    index = json.loads((folder / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"layers.0.w", "layers.1.w", "head", "ids"}
    for name, file in index["weight_map"].items():
        with safe_open(folder / "out" / file, framework="pt") as held:
            assert name in held.keys()  # noqa: SIM118 - it is no mapping
    # 2 * 12 bfloat16, 5 bfloat16, 3 int64.
    assert index["metadata"]["total_size"] == 2 * (12 + 12 + 5) + 3 * 8


def test_the_manifest_is_enough_to_make_it_again(report: MergeReport, manifest: dict[str, Any], folder: Path) -> None:
    recipe = parse_recipe(manifest["recipe"], folder=folder, overrides=manifest["overrides"])
    plan = build_plan(recipe, shard_size=40)
    assert plan.digest == manifest["plan_sha256"]
    merge(plan, folder / "again", sync=False)
    again = json.loads((folder / "again" / "merge_manifest.json").read_text())
    # The card has the name of the folder in it.
    assert again["files"] | {"README.md": manifest["files"]["README.md"]} == manifest["files"]


def test_a_recipe_made_in_python_is_recorded_as_data_that_loads(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", {"w": [1.0]})
    weight = [{"filter": "w", "value": [1.0, 2.0]}, {"value": 3.0}]
    content = {"merge_method": "linear", "models": [{"model": str(tmp_path / "one"), "parameters": {"weight": weight}}]}
    merge(build_plan(Recipe.model_validate(content)), tmp_path / "out", sync=False)
    recorded = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())["recipe"]
    assert recorded == content
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0]) == content


def test_the_report_is_plain_data(report: MergeReport) -> None:
    content = json.loads(json.dumps(report.to_json()))
    assert content["method"] == "ties"
    assert content["models"] == 2
    assert (content["merged"], content["copied"], content["parameters"]) == (2, 2, 12 + 12 + 5 + 3)
    assert content["files"] == report.files
    assert content["seconds"] > 0


def test_the_recipe_beside_the_output_has_what_the_command_line_changed(report: MergeReport, folder: Path) -> None:
    written = parse_recipe((folder / "out" / "recipe.yml").read_text())
    given = yaml.safe_load(RECIPE)
    assert written.merge_method == given["merge_method"]
    assert written.parameters["lambda"] == 0.5
    assert [entry.model for entry in written.models] == [entry["model"] for entry in given["models"]]
