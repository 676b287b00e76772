import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge_cli.checkpoint import Files, Staging, check_replaceable
from merge_cli.checkpoint.digest_file import write_digests
from merge_cli.errors import BusyError, RecipeError, ResourceError
from tests.checkpoint.helpers import EIO, Failing


def fill(folder: Path, content: str = "new") -> None:
    """Write what stands for a finished checkpoint."""
    (folder / "model.safetensors").write_text(content)
    (folder / "config.json").write_text("{}")
    write_digests(folder, Files(), sync=False)


def make(out: Path, *, content: str = "new", force: bool = False, sync: bool = False) -> None:
    staging = Staging(out, force=force)
    with staging.open() as folder:
        fill(folder, content)
        staging.commit(sync=sync)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_the_output_appears_under_its_name_when_it_is_complete(sync: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    staging = Staging(out, force=False)
    with staging.open() as folder:
        assert folder == tmp_path / "out.partial"
        fill(folder)
        assert not out.exists()
        staging.commit(sync=sync)
        assert out.exists()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["SHA256SUMS", "config.json", "model.safetensors"]


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b" / "out")
    assert names(tmp_path / "a" / "b" / "out") == ["SHA256SUMS", "config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["out.v1", ".hidden", "a b", "größe", "out.partial"])
def test_the_output_may_have_any_name(name: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("out", [".", "..", "/", "a/.."])
def test_an_output_without_a_name_of_its_own_is_refused(out: str) -> None:
    with pytest.raises(RecipeError, match="does not name an output"):
        Staging(Path(out), force=True)


def test_a_long_name_is_an_error_and_no_stack_trace(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="File name too long"), Staging(tmp_path / ("a" * 300), force=False).open():
        pass


def test_everyone_else_may_read_the_output_and_nobody_else_may_change_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        staging = Staging(tmp_path / "out", force=False)
        with staging.open() as folder:
            Files().write_new(folder / "config.json", b"{}", sync=False)
            staging.commit(sync=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out" / "config.json").stat().st_mode) == 0o644


def test_a_private_umask_is_honoured(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Staging(tmp_path / "out", force=False).open() as folder:
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / ".lock")]
    finally:
        os.umask(before)
    assert modes == [0o700, 0o600]


# An output that is there already


def test_an_output_that_is_there_is_refused_before_any_work(tmp_path: Path) -> None:
    make(tmp_path / "out", content="old")
    with pytest.raises(RecipeError) as caught, Staging(tmp_path / "out", force=False).open():
        pass
    assert caught.value.message == f"{tmp_path / 'out'} exists"
    assert caught.value.hint == "choose another name, or replace it with --force"
    assert names(tmp_path) == ["out"]


def test_a_checkpoint_is_replaced_by_force_and_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, content="old")
    staging = Staging(out, force=True)
    with staging.open() as folder:
        fill(folder)
        assert (out / "model.safetensors").read_text() == "old"
        staging.commit(sync=True)
    assert (out / "model.safetensors").read_text() == "new"
    assert names(out) == ["SHA256SUMS", "config.json", "model.safetensors"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_may_be_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_replaceable(tmp_path / "out", force=False)
    check_replaceable(tmp_path / "out", force=True)
    make(tmp_path / "out")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "files",
    [
        ["model.safetensors", "config.json"],
        ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
        ["pytorch_model.bin"],
        ["thesis.tex"],
        ["config.json", "index.js"],
        [".git"],
    ],
)
def test_folders_that_this_program_did_not_write_are_not_replaced_even_by_force(
    files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for file in files:
        (out / file).touch()
    with pytest.raises(RecipeError, match="was not written by merge-cli"), Staging(out, force=True).open():
        pass
    assert names(out) == sorted(files)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt", "sub/", ".git", "model-2.safetensors"])
def test_an_output_to_which_something_was_added_is_not_replaced_and_what_it_is_is_named(
    name: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make(out)
    if name.endswith("/"):
        (out / name).mkdir()
    else:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    with pytest.raises(RecipeError, match=rf"^{out} holds {name}, not written by merge-cli"):
        check_replaceable(out, force=True)


def test_a_link_to_a_folder_in_an_output_is_something_added(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(RecipeError, match="holds link, not written by merge-cli"):
        check_replaceable(tmp_path / "out", force=True)


def test_files_and_links_are_not_replaced_even_by_force(tmp_path: Path) -> None:
    make(tmp_path / "model")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(RecipeError, match="is not a folder"):
            check_replaceable(tmp_path / name, force=True)
        with pytest.raises(RecipeError, match="exists"):
            check_replaceable(tmp_path / name, force=False)


def test_a_name_that_is_free_may_be_taken(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "out", force=False)
    check_replaceable(tmp_path / "out", force=True)


def test_an_output_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", force=False)
    with staging.open() as folder:
        fill(folder)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").touch()
        with pytest.raises(RecipeError, match="exists"):
            staging.commit(sync=False)
    assert names(tmp_path / "out.partial") == [".lock", "SHA256SUMS", "config.json", "model.safetensors"]
    assert names(tmp_path / "out") == ["precious"]


@pytest.mark.parametrize("sync", [True, False])
def test_the_old_output_comes_back_when_the_new_one_cannot_take_its_name(sync: bool, tmp_path: Path) -> None:
    class NoSecondRename(Files):
        def swap_names(self, one: Path, other: Path) -> bool:
            return False

        def rename(self, old: Path, new: Path) -> None:
            if old.name == "out.partial":
                raise OSError(EIO, os.strerror(EIO))
            super().rename(old, new)

    out = tmp_path / "out"
    make(out, content="old")
    staging = Staging(out, force=True, files=NoSecondRename())
    with staging.open() as folder:
        fill(folder)
        with pytest.raises(ResourceError, match=rf"^cannot write {out}: Input/output error$"):
            staging.commit(sync=sync)
    assert (out / "model.safetensors").read_text() == "old"
    assert (tmp_path / "out.partial" / "model.safetensors").read_text() == "new"
    assert not (tmp_path / "out.replaced").exists()


@pytest.mark.parametrize("call", ["rename", "sync"])
def test_an_output_that_cannot_be_committed_is_not_there(call: str, tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", force=False, files=Failing(EIO, [call]))
    with staging.open() as folder:
        fill(folder)
        with pytest.raises(ResourceError, match=r"Input/output error$"):
            staging.commit(sync=True)
    assert names(tmp_path) == ["out.partial"]


def test_a_folder_of_the_user_called_replaced_is_left_alone(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "out.replaced"
    other.mkdir()
    (other / "precious").touch()
    make(out, content="old")
    assert names(other) == ["precious"]
    with pytest.raises(RecipeError, match=rf"^{other} is in the way"), Staging(out, force=True).open():
        pass
    assert names(other) == ["precious"]
    assert (out / "model.safetensors").read_text() == "old"
    assert names(tmp_path) == ["out", "out.replaced"]


# What other runs have left, and runs at the same time


def test_what_a_run_that_died_has_left_is_removed(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from merge_cli.checkpoint import Staging

with Staging(Path(sys.argv[1]), force=False).open() as folder:
    (folder / "model.safetensors").write_text("half")
    (folder / "sub").mkdir()
    (folder / "sub" / "x").touch()
    os._exit(9)
"""
    out = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", code, str(out)]).returncode == 9
    assert names(tmp_path / "out.partial") == [".lock", "model.safetensors", "sub"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "out.partial" / "link").symlink_to(tmp_path / "elsewhere")
    with Staging(out, force=False).open() as folder:
        assert names(folder) == [".lock"]
    assert names(tmp_path / "elsewhere") == ["kept"]


def test_a_folder_called_partial_that_no_run_has_made_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "out.partial"
    other.mkdir()
    (other / "precious").touch()
    with pytest.raises(RecipeError, match=rf"^{other} is in the way"), Staging(tmp_path / "out", force=True).open():
        pass
    assert names(other) == ["precious"]


@pytest.mark.parametrize("content", [b"", b"some other program's lock", b"A folder in which merge-cli works"])
def test_a_folder_called_partial_with_a_lock_of_others_is_left_alone(content: bytes, tmp_path: Path) -> None:
    other = tmp_path / "out.partial"
    other.mkdir()
    (other / ".lock").write_bytes(content)
    (other / "precious").touch()
    with pytest.raises(RecipeError, match=rf"^{other} is in the way"), Staging(tmp_path / "out", force=True).open():
        pass
    assert names(other) == [".lock", "precious"]


def test_a_link_called_partial_is_not_followed(tmp_path: Path) -> None:
    with Staging(tmp_path / "first", force=False).open() as folder:
        fill(folder)
    (tmp_path / "out.partial").symlink_to(tmp_path / "first.partial")
    with pytest.raises(RecipeError, match=r"out.partial is a link"), Staging(tmp_path / "out", force=False).open():
        pass
    assert "model.safetensors" in names(tmp_path / "first.partial")


def test_a_lock_into_which_nothing_was_written_yet_is_taken_where_nothing_else_is_there(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / ".lock").touch()
    make(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_what_a_run_leaves_that_is_killed_after_the_output_got_its_name_is_cleared_away(tmp_path: Path) -> None:
    with Staging(tmp_path / "out", force=False).open() as folder:
        fill(folder)
        (folder / ".journal").touch()
        shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / ".gitattributes").touch()
    Staging(tmp_path / "other", force=False).finish()
    assert names(tmp_path / "other") == [".gitattributes", "SHA256SUMS", "config.json", "model.safetensors"]


def test_an_empty_folder_called_partial_is_used(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    make(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_file_called_partial_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out.partial").touch()
    with (
        pytest.raises(ResourceError, match=r"out.partial: File exists\n"),
        Staging(tmp_path / "out", force=True).open(),
    ):
        pass


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[Path]:
    """An output that another process is writing."""
    code = """
import sys
from pathlib import Path
from merge_cli.checkpoint import Staging

with Staging(Path(sys.argv[1]), force=False).open() as folder:
    (folder / "model.safetensors").write_text("theirs")
    print("working", flush=True)
    sys.stdin.read()
"""
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        yield out
        process.communicate("")
    assert process.returncode == 0


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_in_which_another_process_works_is_refused_and_untouched(force: bool, at_work: Path) -> None:
    staging = Staging(at_work, force=force)
    with pytest.raises(BusyError) as caught, staging.open():
        pass
    assert caught.value.message == f"another process is writing {at_work}.partial"
    assert caught.value.hint == "wait for it, or stop it"
    staging.discard()
    assert (staging.folder / "model.safetensors").read_text() == "theirs"


def test_a_run_that_starts_during_a_commit_does_not_touch_what_is_committed(tmp_path: Path) -> None:
    out, refused = tmp_path / "out", []

    class Competing(Files):
        def compete(self) -> None:
            with pytest.raises(ResourceError, match="another process is writing"), Staging(out, force=True).open():
                pass
            refused.append(True)

        def sync_folder(self, folder: Path) -> None:
            if folder.name == "out.partial":
                self.compete()
            super().sync_folder(folder)

        def rename(self, old: Path, new: Path) -> None:
            self.compete()
            super().rename(old, new)

    staging = Staging(out, force=False, files=Competing())
    with staging.open() as folder:
        fill(folder)
        staging.commit(sync=True)
    assert refused == [True, True]
    assert names(out) == ["SHA256SUMS", "config.json", "model.safetensors"]


def test_a_lock_whose_folder_was_committed_before_it_was_taken_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Staging(tmp_path / "out", force=True), Staging(tmp_path / "out", force=True)
    lock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        # Between opening and locking, the first run finishes and a third one starts.
        monkeypatch.setattr(fcntl, "flock", lock)
        first.commit(sync=False)
        third.mkdir()
        (third / ".lock").touch()
        (third / "model.safetensors").write_text("third")
        lock(fd, operation)

    third = tmp_path / "out.partial"
    with first.open() as folder:
        fill(folder)
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ResourceError, match="another process is writing"), second.open():
        pass
    assert (third / "model.safetensors").read_text() == "third"


def test_the_lock_is_given_back_when_the_work_ends_or_fails(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", force=False)
    with pytest.raises(ZeroDivisionError), staging.open():
        raise ZeroDivisionError
    with staging.open(), pytest.raises(ResourceError), Staging(tmp_path / "out", force=False).open():
        pass
    with staging.open():
        pass


def test_discarding_removes_the_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    staging = Staging(tmp_path / "out", force=False)
    with staging.open() as folder:
        fill(folder)
        staging.discard()
    assert names(tmp_path) == ["other"]


def test_discarding_after_the_commit_changes_nothing(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", force=False)
    with staging.open() as folder:
        fill(folder)
        staging.commit(sync=False)
        with Staging(tmp_path / "out", force=True).open():
            staging.discard()
            assert names(tmp_path) == ["out", "out.partial"]


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(ResourceError, match=r"out.partial: No locks available$"):
        Staging(tmp_path / "out", force=False).open().__enter__()
