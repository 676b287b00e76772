"""The scripts run and print valid JSON; what they measure is for people to judge."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from merge_cli.checkpoint import open_checkpoint
from tests.benchmarks.cases import CASES, DEFAULT_CASES, Family
from tests.benchmarks.measuring import ROOT, table
from tests.benchmarks.scaling import thread_counts

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


def module(name: str, *arguments: str | Path) -> str:
    """Run a benchmark from the command line and return what it prints."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def printed(name: str, *arguments: str | Path) -> Any:
    return json.loads(module(name, *arguments, "--json"))


def test_a_family_has_models_and_fishers_of_the_same_tensors(work: Path) -> None:
    module("checkpoints", work / "60m", "--size", "60m", "--fishers")
    base, fine_tune, fisher = (open_checkpoint(work / "60m" / name) for name in ("base", "ft3", "ft3-fisher"))
    assert set(base.tensors) == set(fine_tune.tensors) == set(fisher.tensors)
    assert base.tensors["model.embed_tokens.weight"].shape == (32000, 512)
    assert fisher.metadata["kind"] == "fisher"
    assert fisher.metadata["train_examples"] == "3000"


def test_every_method_is_measured_without_a_peer(work: Path) -> None:
    found = printed("against_mergekit", "--size", "60m", "--runs", "1", "--no-peer", "--work", work)
    assert [each["method"] for each in found["methods"]] == DEFAULT_CASES
    assert all(each["floor_seconds"] and each["runs"]["merge-cli"] for each in found["methods"])


@pytest.mark.parametrize("case", ["linear", "ties_model"])
def test_a_merge_is_profiled_with_every_function_found(work: Path, case: str) -> None:
    family = Family(work / "60m", 3).make("--size", "60m")
    recipe = CASES[case].write(work / f"{case}.yml", family)
    found = printed("profile_merge", recipe, "--threads", "2", "--work", work)
    assert not found["missing"]
    assert found["phases"]["read"]["workers"]["calls"] > 0
    assert (found["phases"]["measure"]["workers"]["calls"] > 0) == (case == "ties_model")


def test_every_series_is_measured(work: Path) -> None:
    few = ("--sizes", "60m", "--models", "2", "3", "--tensors", "10", "20", "--threads-size", "60m", "--runs", "1")
    found = printed("scaling", *few, "--work", work)
    assert list(found["series"]) == ["sizes", "models", "threads", "tensors"]
    assert "20" in module("scaling", *few, "--series", "tensors", "--work", work)


@pytest.mark.parametrize("name", ["against_mergekit", "profile_merge", "scaling"])
def test_what_measures_other_processes_does_not_import_torch(name: str) -> None:
    code = f"import sys, tests.benchmarks.{name}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_threads_double_until_every_processor_has_one() -> None:
    assert [thread_counts(most) for most in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]


def test_a_table_lines_up() -> None:
    assert table(("a", "bb"), [("ccc", "1")]) == "| a   | bb |\n| --- | -: |\n| ccc |  1 |"
