"""Rehearsal of the staging folder, which leaves everything as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.folder_lock import LOCK, is_marked, lock_folder, remove_locked_folder
from merge_cli.checkpoint.os_errors import write_errors
from merge_cli.checkpoint.staging import Staging
from merge_cli.errors import BusyError


@contextlib.contextmanager
def rehearsed(out: Path, *, force: bool, files: Files) -> Iterator[Path]:
    """Make and lock the folder in which an output would be made, or take what is there, and put all back at the end.

    The system is asked by doing it: what it says of permissions is not true of every user and every file system.

    Raises:
        MergeError: What :meth:`Staging.open` raises.
    """
    staging = Staging(out, force=force, files=files)
    folder = staging.folder
    if is_marked(out):
        _check_idle(out, files)
    else:
        staging.check_free()
    with write_errors(folder):
        new = [each for each in (folder, *folder.parents) if not each.exists()]
        had_lock = (folder / LOCK).exists()
    try:
        with lock_folder(folder, files, run="run", busy=f"another process is writing {folder}") as lock:
            try:
                yield folder
            finally:
                if folder in new:
                    remove_locked_folder(folder, lock, files)
                elif not had_lock:
                    files.remove(folder / LOCK)
    finally:
        for each in new:
            with contextlib.suppress(OSError):
                files.remove_empty_folder(each)


def _check_idle(out: Path, files: Files) -> None:
    """Refuse an output whose run has given it its name and is still at work on it."""
    with write_errors(out):
        fd = files.open_write(out / LOCK)
        try:
            if not files.lock(fd):
                raise BusyError(f"another process is writing {out}", hint="wait for it, or stop it")
        finally:
            files.close(fd)
