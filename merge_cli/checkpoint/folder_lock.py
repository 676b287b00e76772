"""Exclusive use of a working folder, by a lock on a hidden file in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.os_errors import write_errors
from merge_cli.errors import BusyError, RecipeError, ResourceError

LOCK = ".lock"
# What the lock file of a folder of ours holds: any program may make a file of that name.
_MARK = b"A folder in which merge-cli works; it may be removed when no merge-cli runs.\n"
_ASIDE = "move it away, or choose another name for the output"


@contextlib.contextmanager
def lock_folder(folder: Path, files: Files, *, run: str, busy: str) -> Iterator[int]:
    """Make a folder, or take one that an earlier run has left, and yield the lock, which is held until the end.

    Args:
        folder: The folder.
        files: The system calls to use.
        run: What a process that makes such folders is called.
        busy: What is said where another process holds it.

    Raises:
        RecipeError: If the folder was not made by such a run, or is a link.
        BusyError: If another process holds it.
        ResourceError: If it cannot be made.
    """
    with write_errors(folder):
        if folder.is_symlink():
            raise RecipeError(f"{folder} is a link, which no earlier {run} has made", hint=_ASIDE)
        files.make_folder(folder)
        if not may_take(folder, files):
            raise RecipeError(f"{folder} is in the way, and no earlier {run} has made it", hint=_ASIDE)
        fd = files.open_write(folder / LOCK)
    try:
        with write_errors(folder):
            # Its holder may have committed between our opening and locking it, and its name gone with the folder.
            if not files.lock(fd) or not holds_lock(fd, folder):
                raise BusyError(busy, hint="wait for it, or stop it")
        try:
            files.write_all(fd, memoryview(_MARK), 0, folder / LOCK)
        except ResourceError:
            with contextlib.suppress(OSError):
                if files.list_names(folder) == [LOCK]:
                    remove_locked_folder(folder, fd, files)
            raise
        yield fd
    finally:
        # What the file holds counts for the next run alone: that it cannot be closed takes nothing from what was done.
        with contextlib.suppress(OSError):
            files.close(fd)


def may_take(folder: Path, files: Files) -> bool:
    """Tell whether a folder is empty, but for an empty lock, or holds the lock file of a run of this program."""
    names = files.list_names(folder)
    return not names or (LOCK in names and (is_marked(folder) or (len(names) == 1 and _is_empty(folder / LOCK))))


def is_marked(folder: Path) -> bool:
    """Tell whether the lock file in a folder was written by this program."""
    path = folder / LOCK
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_MARK) + 1) == _MARK
    except OSError:
        return False


def _is_empty(path: Path) -> bool:
    # A run was stopped between making the file and writing into it.
    return path.is_file() and not path.is_symlink() and path.stat().st_size == 0


def holds_lock(lock: int, folder: Path) -> bool:
    """Tell whether an open lock file is that of a folder."""
    try:
        return os.path.samestat(os.fstat(lock), (folder / LOCK).stat())
    except OSError:
        return False


def clear_locked_folder(folder: Path, files: Files) -> None:
    """Remove all but the lock from a folder that is locked.

    Raises:
        ResourceError: If it cannot be removed.
    """
    with write_errors(folder):
        # A journal, a hidden file, comes first: without it nothing counts as done.
        for name in files.list_names(folder):
            path = folder / name
            if name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                files.remove_folder(path)
            else:
                files.remove(path)


def remove_locked_folder(folder: Path, lock: int, files: Files) -> None:
    """Remove a folder and what is in it, as far as the system lets it; never one that is not, or no longer, locked.

    The lock goes last: until then no other process can take the folder, and whatever kills this one on the way leaves
    a folder that the next run knows for one of its kind.
    """
    if not holds_lock(lock, folder):
        return
    with contextlib.suppress(OSError, ResourceError):
        clear_locked_folder(folder, files)
        files.remove(folder / LOCK)
        files.remove_empty_folder(folder)
