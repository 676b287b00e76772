"""A dry run ends as the merge would, as far as that can be known before the work, and leaves everything as it was."""

import json
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.folder_lock import lock_folder
from merge_cli.plan import build_plan
from merge_cli.recipe import load_recipe
from merge_cli.run import merge
from tests.checkpoints import write_checkpoint
from tests.cli.conftest import Done, Run, listing


class Stopped(BaseException):
    """The process is stopped."""


class StopBeforeTheManifest(Files):
    """Ends a merge of which all tensors are written."""

    def write_new(self, path: Path, content: bytes, *, sync: bool) -> None:
        if path.name == "merge_manifest.json":
            raise Stopped
        super().write_new(path, content, sync=sync)


def state(folder: Path) -> list[tuple[str, bytes]]:
    """Return every path below a folder with what is in it."""
    return [(name, (folder / name).read_bytes() if (folder / name).is_file() else b"") for name in listing(folder)]


def both(run: Run, out: Path, *options: str) -> Done:
    """Return how a dry run ends, of which nothing is left, and see that the merge ends alike."""
    before = state(out.parent) if out.parent.exists() else None
    dry = run("merge", "r.yml", out, "--dry-run", *options)
    assert (state(out.parent) if out.parent.exists() else None) == before
    real = run("merge", "r.yml", out, *options)
    assert dry.code == real.code
    if dry.code:
        assert dry.err == real.err
    return dry


@pytest.fixture
def stopped(folder: Path) -> Path:
    """Return OUT, of which a stopped merge has left all tensors in OUT.partial."""
    plan = build_plan(load_recipe(folder / "r.yml"))
    with pytest.raises(Stopped):
        merge(plan, folder / "out", sync=False, files=StopBeforeTheManifest())
    return folder / "out"


@pytest.fixture
def read_only(folder: Path) -> Iterator[Path]:
    """Return an empty file system that takes nothing, from root neither."""
    place = folder / "read-only"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_what_is_not_checked_is_said(run: Run, folder: Path) -> None:
    done = both(run, folder / "new" / "deep" / "out")
    assert done.code == 0
    assert done.out.endswith(
        "not checked: whether the tensors hold NaN or infinity, which a merge finds where it reads them\n"
    )


def test_a_full_disk_is_four(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 1000, 0))
    assert both(run, folder / "out").code == 4


def test_files_beside_the_weights_count_for_the_space(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "base" / "tokenizer.json").write_text(json.dumps({"filler": "x" * 100_000}))
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(200_000, 150_000, 50_000))
    done = both(run, folder / "out")
    assert done.code == 4
    assert "has 50.0 kB free, the output takes 100." in done.err


def test_what_a_stopped_run_has_reserved_is_not_needed_again(
    run: Run, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 1000, 0))
    assert both(run, stopped).code == 0


def test_a_place_that_takes_no_output_is_six(run: Run, read_only: Path) -> None:
    assert both(run, read_only / "deep" / "out").code == 6


def test_a_file_on_the_way_is_six(run: Run, folder: Path) -> None:
    assert both(run, folder / "r.yml" / "out").code == 6


def test_an_output_that_is_there_is_two(run: Run, folder: Path) -> None:
    write_checkpoint(folder / "out", {"w": [1.0]})
    assert both(run, folder / "out").code == 2


def test_a_folder_in_the_way_of_the_work_is_two(run: Run, folder: Path) -> None:
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "thesis.txt").write_text("mine")
    assert both(run, folder / "out").code == 2


def test_an_empty_folder_in_the_way_of_the_work_is_left_empty(run: Run, folder: Path) -> None:
    (folder / "out.partial").mkdir()
    assert both(run, folder / "out").code == 0


def test_another_process_at_work_is_seventy_five(run: Run, folder: Path) -> None:
    with lock_folder(folder / "out.partial", Files(), run="run", busy=""):
        assert both(run, folder / "out").code == 75


def test_what_a_stopped_run_has_left_is_told_and_kept(run: Run, stopped: Path) -> None:
    before = state(stopped.parent)
    done = run("merge", "r.yml", stopped, "--dry-run")
    assert done.code == 0
    assert "a merge would resume from 72 B that an interrupted run has written\n" in done.out
    assert json.loads(run("merge", "r.yml", stopped, "--dry-run", "--json").out)["resumed_bytes"] == 72
    assert "would go on" not in run("merge", "r.yml", stopped, "--dry-run", "--restart").out
    assert state(stopped.parent) == before


def test_what_another_merge_has_left_is_two(run: Run, stopped: Path) -> None:
    done = both(run, stopped, "--set", "parameters.lambda=2")
    assert done.code == 2
    assert "holds an unfinished merge of something else" in done.err


def test_an_output_of_the_same_merge_is_told(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    done = both(run, folder / "out")
    assert "a merge would find its output complete and do nothing" in done.out


def test_a_fisher_of_another_model_is_three(run: Run, folder: Path) -> None:
    for name, told in (("f-one", "x"), ("f-two", "y")):
        metadata = {"kind": "fisher", "reduction": "mean", "train_examples": "1", "model_identity": told}
        write_checkpoint(folder / name, {"layers.0.w": [[1.0] * 3] * 4}, metadata=metadata)
    (folder / "r.yml").write_text(
        "merge_method: fisher\nmodels: [{model: one, fisher: f-one}, {model: two, fisher: f-two}]\nexclude: [ids]\n"
    )
    assert both(run, folder / "out").code == 3


def test_folders_that_cannot_be_removed_again_are_no_failure(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(files: Files, path: Path) -> None:
        raise OSError(os.strerror(5))

    monkeypatch.setattr(Files, "remove_empty_folder", fail)
    assert run("merge", "r.yml", "deep/out", "--dry-run").code == 0
