"""The scripts run and print valid JSON; what they measure is for people to judge."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from merge_cli.checkpoint import open_checkpoint
from tests.benchmarks.cases import CASES, DEFAULT_CASES, Family
from tests.benchmarks.cold import cached_bytes, drop
from tests.benchmarks.measuring import ROOT, size_of, table, weight_files
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


def test_a_cold_merge_of_all_checkpoints_is_measured_and_leaves_no_output(work: Path) -> None:
    family = Family(work / "small", 1).make("--small-tensors", "100")
    found = printed("cold", family.folder, "--threads", "1")
    (run,) = found["runs"]
    assert found["checkpoints"] == 2
    assert run["input_bytes"] == size_of([*weight_files(family.base), *weight_files(family.models[0])])
    assert run["output_bytes"] > 100 * 1024 * 2
    assert 0 <= run["inputs_cached_before_bytes"] <= run["input_bytes"]
    assert 0 <= run["output_cached_after_bytes"] < found["memory_total_bytes"]
    assert run["machine_cached_after_bytes"] < found["memory_total_bytes"]
    assert 0 < run["merging_seconds"] < run["seconds"]
    assert run["disk_bytes_per_second"] > 0
    assert {path.name for path in family.folder.iterdir()} == {"base", "ft1"}
    assert "run 2" in module("cold", family.folder, "--method", "slerp", "--runs", "2")


def test_a_file_just_written_is_in_the_page_cache_until_it_is_dropped(tmp_path: Path) -> None:
    if subprocess.run(["stat", "-f", "-c", "%T", tmp_path], check=True, capture_output=True).stdout == b"tmpfs\n":
        pytest.skip("a file of a tmpfs is nowhere else")
    file = tmp_path / "file"
    file.write_bytes(b"a" * 1_000_001)
    assert cached_bytes([file]) == 1_000_001
    drop([file])
    assert cached_bytes([file]) == 0


@pytest.mark.parametrize("name", ["against_mergekit", "cold", "profile_merge", "scaling"])
def test_what_measures_other_processes_does_not_import_torch(name: str) -> None:
    code = f"import sys, tests.benchmarks.{name}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_threads_double_until_every_processor_has_one() -> None:
    assert [thread_counts(most) for most in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]


def test_a_table_lines_up() -> None:
    assert table(("a", "bb"), [("ccc", "1")]) == "| a   | bb |\n| --- | -: |\n| ccc |  1 |"
