"""A folder that one process works in, and how it goes again."""

import shutil
from pathlib import Path

import pytest

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.folder_lock import lock_folder, remove_locked_folder
from merge_cli.errors import RecipeError, ResourceError
from tests.crash.seam import Seam


def test_a_locked_folder_is_refused_to_others_until_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "work"
    with lock_folder(folder, Files(), run="run", busy="first"):
        assert folder.is_dir()
        with pytest.raises(ResourceError, match="second"), lock_folder(folder, Files(), run="run", busy="second"):
            pass
    with lock_folder(folder, Files(), run="run", busy="third"):
        pass


def test_a_folder_that_no_run_has_made_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(RecipeError, match="no earlier trial"), lock_folder(tmp_path, Files(), run="trial", busy=""):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_lock_goes_after_all_else_that_is_in_the_folder(tmp_path: Path) -> None:
    folder, files = tmp_path / "work", Seam()
    with lock_folder(folder, files, run="run", busy="") as lock:
        for name in (".journal", "a", "z"):
            (folder / name).touch()
        (folder / "inside").mkdir()
        (folder / "inside" / "b").touch()
        remove_locked_folder(folder, lock, files)
        removed = [(call.name, call.path.name) for call in files.made if call.name.startswith("remove")]
    assert removed == [
        ("remove", ".journal"),
        ("remove", "a"),
        ("remove_folder", "inside"),
        ("remove", "z"),
        ("remove", ".lock"),
        ("remove_empty_folder", "work"),
    ]
    assert not folder.exists()


def test_a_folder_that_is_anothers_by_now_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with lock_folder(folder, Files(), run="run", busy="") as lock:
        shutil.rmtree(folder)
        with lock_folder(folder, Files(), run="run", busy=""):
            (folder / "theirs").touch()
            remove_locked_folder(folder, lock, Files())
            assert (folder / "theirs").exists()
