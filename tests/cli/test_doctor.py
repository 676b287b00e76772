"""``doctor`` says what the program runs with, and removes nothing that is not a stopped run's own."""

import fcntl
import json
from importlib import metadata
from pathlib import Path

import pytest

from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.folder_lock import LOCK, lock_folder
from tests.cli.conftest import Run


def left_behind(folder: Path) -> Path:
    """Make what a run leaves that is killed: its folder, marked as its own, with a file of 1000 bytes."""
    with lock_folder(folder, Files(), run="run", busy="busy"):
        (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture(autouse=True)
def small_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("data")))


def examined(run: Run, *words: object) -> dict[str, object]:
    done = run("doctor", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, object] = json.loads(done.out)
    return found


def test_versions_are_those_that_are_installed(run: Run, tmp_path: Path) -> None:
    found = examined(run, tmp_path)
    assert found["versions"]["numpy"] == metadata.version("numpy")  # type: ignore[index]
    said = run("doctor", tmp_path).out
    assert metadata.version("torch") in said
    assert "compiled kernels" in said
    assert "left by a run" not in said


def test_what_a_stopped_run_left_is_shown_and_stays_without_clean(run: Run, tmp_path: Path) -> None:
    for name in ("out.partial", "fisher.measuring"):
        left_behind(tmp_path / name)
    said = run("doctor", tmp_path).out
    assert said.count("--clean removes it") == 2
    assert "1.1 kB" in said
    assert (tmp_path / "out.partial" / "model.safetensors").exists()


def test_clean_removes_what_stopped_runs_left(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    ours = [left_behind(tmp_path / "out.partial"), left_behind(tmp_path / "deeper" / "f.measuring")]
    found = examined(run, tmp_path, "--clean")
    assert sorted(found["removed"]) == sorted(map(str, ours))  # type: ignore[call-overload]
    assert not any(path.exists() for path in ours)


def test_clean_keeps_what_others_made_and_where_a_run_is_at_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.partial").mkdir()
    (tmp_path / "notes.partial" / "notes.txt").write_text("mine")
    (tmp_path / "old.replaced").mkdir()
    (tmp_path / "old.replaced" / "notes.txt").write_text("mine")
    (tmp_path / "link.partial").symlink_to(left_behind(tmp_path / "elsewhere"))
    busy = left_behind(tmp_path / "busy.partial")
    with (busy / LOCK).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = examined(run, tmp_path, "--clean")
    assert found["removed"] == []
    reasons = {Path(each["folder"]).name: each["keep"] for each in found["leftovers"]}  # type: ignore[attr-defined]
    assert reasons == {
        "busy.partial": "a run is at work in it",
        "notes.partial": "no merge-cli made it",
        "old.replaced": "it holds what merge-cli did not write",
    }
    assert (tmp_path / "elsewhere" / "model.safetensors").exists()


def test_an_older_output_goes_only_where_the_newer_one_is_in_place(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    (folder / "out").rename(folder / "out.replaced")
    assert examined(run, folder, "--clean")["removed"] == []
    assert run("merge", "r.yml", "other").code == 0
    (folder / "other").rename(folder / "out")
    assert examined(run, folder, "--clean")["removed"] == [str(folder / "out.replaced")]


def test_without_compiled_kernels_it_says_what_that_costs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merge_cli.kernels.compiled.MISSING", "switched off by MERGE_CLI_COMPILED=0")
    assert "switched off by MERGE_CLI_COMPILED=0" in str(examined(run, tmp_path)["compiled_kernels"])


def test_a_folder_that_there_is_not_is_a_mistake(run: Run, tmp_path: Path) -> None:
    done = run("doctor", tmp_path / "no")
    assert done.code == 2
    assert "is not a folder" in done.err
