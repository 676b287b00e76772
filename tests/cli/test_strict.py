"""Warnings of the plan, from its headers and from a sample of the numbers: where they are told, and when they count."""

import json
from pathlib import Path

import pytest
import torch

from tests.checkpoints import write_checkpoint
from tests.cli.conftest import Run, listing

UNUSED = "r.yml: parameters.int8_mask: ties has no such parameter; it is not used"
WARNED = ["--set", "parameters.int8_mask=true"]
COPY = "one equals the base base, so it has nothing to add: 15 sampled numbers of 2 tensors do not differ"


@pytest.fixture
def copied(folder: Path) -> Path:
    """Return the working directory, where the model ``one`` is a copy of the base."""
    for i, name in enumerate(["base", "one", "two"]):
        tensors = {"layers.0.w": torch.full((4, 3), 1.0 + (i == 2)), "norm": torch.ones(3)}
        write_checkpoint(folder / name, tensors)
    return folder


@pytest.mark.parametrize("arguments", [["plan", "r.yml"], ["merge", "r.yml", "out", "--dry-run"]])
def test_looking_at_the_numbers_is_part_of_the_plan(run: Run, copied: Path, arguments: list[str]) -> None:
    done = run(*arguments, "--json")
    assert done.code == 0
    assert done.err == f"warning: {COPY}\n"
    assert json.loads(done.out)["warnings"] == [COPY]


def test_the_report_and_the_manifest_keep_the_warnings_once(run: Run, copied: Path) -> None:
    done = run("merge", "r.yml", "out", "--json", *WARNED)
    assert done.err == f"warning: {UNUSED}\nwarning: {COPY}\n"
    assert json.loads(done.out)["warnings"] == [UNUSED, COPY]
    assert json.loads((copied / "out" / "merge_manifest.json").read_text())["warnings"] == [UNUSED, COPY]


def test_strictly_nothing_to_warn_of_is_a_success(run: Run, folder: Path) -> None:
    assert run("plan", "r.yml", "--strict").code == 0
    assert run("merge", "r.yml", "out", "--strict").code == 0
    assert (folder / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "arguments", [["plan", "r.yml"], ["merge", "r.yml", "out"], ["merge", "r.yml", "out", "--dry-run"]]
)
def test_strictly_every_warning_is_part_of_one_error_and_nothing_is_written(
    run: Run, copied: Path, arguments: list[str]
) -> None:
    before = listing(copied)
    done = run(*arguments, "--strict", *WARNED)
    assert done.code == 2
    assert done.out == ""
    assert done.err == (
        f"error: strict allows no warnings, the plan has 2:\n  {UNUSED}\n  {COPY}\n"
        "  hint: fix the recipe or the models, or merge without --strict\n"
    )
    assert listing(copied) == before


def test_strictly_an_output_that_is_there_stays(run: Run, copied: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    before = {path: path.read_bytes() for path in (copied / "out").iterdir()}
    assert run("merge", "r.yml", "out", "--force", "--strict", "--set", "seed=1").code == 2
    assert {path: path.read_bytes() for path in (copied / "out").iterdir()} == before


def test_a_failure_of_strictness_in_json(run: Run, copied: Path) -> None:
    done = run("merge", "r.yml", "out", "--strict", "--json")
    content = json.loads(done.out)
    assert content["exit_code"] == done.code == 2
    assert COPY in content["error"]


@pytest.mark.parametrize("arguments", [["plan", "r.yml"], ["merge", "r.yml", "out", "--dry-run"]])
def test_a_device_that_is_not_there_is_found_without_merging(run: Run, folder: Path, arguments: list[str]) -> None:
    done = run(*arguments, "--device", "cuda:99")
    assert done.code == 2
    assert done.err.startswith("error: --device cuda:99: this machine has ")


def test_a_strict_merge_allows_what_the_recipe_leaves_out_and_notes_it(run: Run, folder: Path) -> None:
    with (folder / "r.yml").open("a") as file:
        file.write("exclude: [{pattern: ids, drop: true}]\n")
    done = run("merge", "r.yml", "out", "--strict", "--json")
    assert done.code == 0
    assert done.err == "note: 1 tensor left out, as the recipe says\n"
    assert json.loads(done.out)["notes"] == ["1 tensor left out, as the recipe says"]
    assert json.loads((folder / "out" / "merge_manifest.json").read_text())["notes"] == json.loads(done.out)["notes"]
