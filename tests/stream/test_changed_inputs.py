"""Inputs that are replaced, cut off or written to while a merge reads them."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merge_cli.checkpoint import Files
from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from merge_cli.stream import diagnose, with_sample_warnings
from merge_cli.stream.executors import start_method
from tests.checkpoints import recipe_over, write_checkpoint

# The header of this file is shorter than 200 bytes, and its tensor takes 400,000.
LARGE = {"w": torch.zeros(100_000)}
CONTENT = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [{"model": "one", "parameters": {"weight": 1}}],
}


def plan(folder: Path) -> MergePlan:
    for name in ("base", "one"):
        write_checkpoint(folder / name, LARGE)
        # In the past, so that a change shows however coarse the clock of the file system is.
        os.utime(folder / name / "model.safetensors", (1_000_000_000, 1_000_000_000))
    return build_plan(recipe_over(folder, CONTENT), threads=1, memory=2**20)


class Changing(Files):
    """Changes a file once after it was read from a number of times."""

    def __init__(self, change: Callable[[], object], after: int) -> None:
        self.change, self.left = change, after

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        self.left -= 1
        if self.left == 0:
            self.change()
        return super().pread(fd, view, offset)


def replace(path: Path) -> None:
    """Give the name to another file of the same size and time, as an unpacked archive or a synchronised folder does."""
    shutil.copy2(path, path.with_name("new"))
    path.with_name("new").rename(path)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\x80\x3f")


def rewrite_unnoticed(path: Path) -> None:
    """Change a number in place and set the time back."""
    before = path.stat()
    rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_other(path: Path) -> None:
    """Give the name to a file of the same size, header and time that holds another number."""
    shutil.copy2(path, path.with_name("new"))
    rewrite_unnoticed(path.with_name("new"))
    path.with_name("new").rename(path)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def cut(path: Path) -> None:
    os.truncate(path, 1000)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("change", "after"),
    # The first read is of the base, the later ones are of both. A copy that takes its place before it is opened and
    # has its size and time is the file.
    [
        (replace, 3),
        *(
            (change, after)
            for change in (rewrite, rewrite_unnoticed, replace_by_other, grow, cut, remove)
            for after in (1, 3)
        ),
    ],
)
def test_an_input_that_changes_while_it_is_read_ends_the_merge_without_an_output(
    change: Callable[[Path], None], after: int, tmp_path: Path
) -> None:
    # Looked at before: that reads too, and opens the files for itself.
    planned, path = with_sample_warnings(plan(tmp_path)), tmp_path / "one" / "model.safetensors"
    before = [each.name for each in tmp_path.iterdir()]
    with pytest.raises(CheckpointError) as caught:
        merge(planned, tmp_path / "out", sync=False, files=Changing(lambda: change(path), after), sample_warnings=False)
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 3
    # A file that is gone may come back, with the disk that it is on; a changed one ends the matter.
    left = {"out.partial"} if change is remove else set()
    assert {each.name for each in tmp_path.iterdir()} - left == set(before)


@pytest.mark.parametrize("change", [rewrite, rewrite_unnoticed, replace_by_other, grow, cut, remove])
def test_an_input_that_has_changed_since_the_plan_ends_the_merge_without_an_output(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    planned, path = plan(tmp_path), tmp_path / "one" / "model.safetensors"
    change(path)
    with pytest.raises(CheckpointError) as caught:
        merge(planned, tmp_path / "out", sync=False)
    assert str(path) in caught.value.message
    assert not (tmp_path / "out").exists()


def test_what_is_only_measured_is_checked_too(tmp_path: Path) -> None:
    planned, path = plan(tmp_path), tmp_path / "one" / "model.safetensors"
    with pytest.raises(CheckpointError, match="has changed since"):
        diagnose(planned, files=Changing(lambda: rewrite(path), 3))


def test_a_file_that_is_only_touched_by_readers_has_not_changed(tmp_path: Path) -> None:
    planned, path = plan(tmp_path), tmp_path / "one" / "model.safetensors"
    files = Changing(lambda: (path.read_bytes(), path.chmod(0o600), os.link(path, tmp_path / "link")), 3)
    merge(planned, tmp_path / "out", sync=False, files=files)
    assert files.left < 0


@pytest.mark.skipif(start_method() is None, reason="workers are not forked on this system")
@pytest.mark.parametrize("change", [replace, rewrite, rewrite_unnoticed, grow, cut])
def test_a_change_is_seen_too_where_workers_are_processes(change: Callable[[Path], None], tmp_path: Path) -> None:
    for name in ("base", "one"):
        write_checkpoint(tmp_path / name, {f"w{i}": torch.zeros(100_000) for i in range(4)})
        os.utime(tmp_path / name / "model.safetensors", (1_000_000_000, 1_000_000_000))
    planned = with_sample_warnings(build_plan(recipe_over(tmp_path, CONTENT), threads=2, memory=2**21))
    path = tmp_path / "one" / "model.safetensors"

    def change_once() -> None:
        # Each process counts for itself, and the first to come so far changes the file.
        with contextlib.suppress(FileExistsError):
            (tmp_path / "changed").mkdir()
            change(path)

    assert planned.threads == 2
    with pytest.raises(CheckpointError) as caught:
        merge(
            planned, tmp_path / "out", sync=False, processes=True, sample_warnings=False, files=Changing(change_once, 3)
        )
    assert str(path) in caught.value.message
    assert (tmp_path / "changed").exists()
    assert not (tmp_path / "out").exists()
