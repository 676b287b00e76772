"""The staging folder of an output, and its commit under the final name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from merge_cli.checkpoint.digest_file import DIGEST_FILE, files_below, read_digests
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.folder_lock import (
    LOCK,
    clear_locked_folder,
    holds_lock,
    is_marked,
    lock_folder,
    remove_locked_folder,
)
from merge_cli.checkpoint.os_errors import write_errors
from merge_cli.errors import BusyError, CheckpointError, RecipeError
from merge_cli.text import listed

# In OUT.partial: what is called OUT.replaced is the checkpoint that the new one replaces. In OUT: so is OUT.partial.
_REPLACING = ".replacing"
# What a run leaves in OUT that is killed right after the commit: the journal, which another layer writes, and these.
_OWN = (".journal", ".journal.new", LOCK, _REPLACING)
_MOST_NAMED = 5


class Staging:
    """The folder ``OUT.partial`` in which an output is made; OUT itself appears complete or not at all.

    Raises:
        RecipeError: If OUT has no name of its own to derive others from, such as ``.`` or ``..``.
    """

    def __init__(self, out: Path, *, force: bool, files: Files | None = None) -> None:
        self.out = out
        _, self.folder, self._replaced = working_folders(out)
        self._files = files or Files()
        self._force = force
        self._lock: int | None = None
        self._committed = False
        self._left: str | None = None

    @contextlib.contextmanager
    def open(self, *, clear: bool = True) -> Iterator[Path]:
        """Make the folder and lock it against other runs.

        Args:
            clear: Whether what a run that died has left in it is removed.

        Raises:
            BusyError: If another process is working in it.
            ResourceError: If it cannot be made.
            RecipeError: If OUT exists and may not be replaced, or if the folder was not made by such a run.
        """
        self.finish()
        self.check_free()
        busy = f"another process is writing {self.folder}"
        with lock_folder(self.folder, self._files, run="run", busy=busy) as self._lock:
            try:
                self._put_back()
                if clear:
                    self.clear()
                yield self.folder
            finally:
                self._lock = None

    def commit(self, *, sync: bool) -> None:
        """Give the folder its final name, inside :meth:`open`; there is a complete OUT at any moment if there was one.

        Raises:
            ResourceError: If the system refuses; whether OUT is the new one by then, :attr:`committed` tells.
            RecipeError: If an OUT has appeared meanwhile.
        """
        self.check_free()
        try:
            with write_errors(self.out):
                replacing = self.out.exists()
                if replacing:
                    self._files.write_new(self.folder / _REPLACING, b"", sync=False)
                if sync:
                    self._files.sync_folder(self.folder)
                if replacing:
                    self._replace()
                else:
                    self._files.rename(self.folder, self.out)
                if sync:
                    self._files.sync_folder(self.out.parent)
        finally:
            # Not before: a run that starts now would find the folder unlocked.
            self._committed = self.committed
            if self._committed:
                self._clean()

    def _replace(self) -> None:
        """Give OUT's name to the folder while an older checkpoint has it."""
        if self._files.swap_names(self.folder, self.out):
            with contextlib.suppress(OSError):
                self._files.rename(self.folder, self._replaced)
            return
        self._files.rename(self.out, self._replaced)
        try:
            self._files.rename(self.folder, self.out)
        except BaseException:
            if not self.out.exists():
                self._files.rename(self._replaced, self.out)
            raise

    def _clean(self) -> None:
        """Remove what OUT was replaced from, then this run's own files in OUT, those last that tell of the former."""
        # The output is there and complete: whatever fails from here on is no reason to call it otherwise.
        self._left = None
        try:
            names = self._files.list_names(self.out)
            if _REPLACING in names:
                self._remove_old()
            for name in sorted(_OWN, key=lambda name: (name == LOCK, name == _REPLACING)):
                if name in names:
                    self._files.remove(self.out / name)
        except OSError as error:
            self._left = f"what the run kept in {self.out} could not all be removed: {error.strerror or error}"

    def _remove_old(self) -> None:
        if self._replaced.exists():
            self._files.remove_folder(self._replaced)
        # It was exchanged and not renamed yet.
        if self.folder.exists() and LOCK not in self._files.list_names(self.folder):
            self._files.remove_folder(self.folder)

    @property
    def left(self) -> str | None:
        """Leftovers beside a complete OUT that could not be removed, in a sentence; the next run tries again."""
        return self._left

    def finish(self) -> None:
        """Remove what a run has left that was killed after it had given OUT its name.

        Raises:
            BusyError: If it is still at work.
        """
        lock = self.out / LOCK
        with write_errors(self.out):
            if not is_marked(self.out):
                return
            fd = self._files.open_write(lock)
            try:
                if not self._files.lock(fd):
                    raise BusyError(f"another process is writing {self.out}", hint="wait for it, or stop it")
                self._clean()
            finally:
                self._files.close(fd)

    def _put_back(self) -> None:
        """Give the older OUT its name again where a run was killed between the two renames that replace it."""
        with write_errors(self.out):
            mark = self.folder / _REPLACING
            if mark.exists() and self._replaced.exists() and not self.out.exists():
                self._files.rename(self._replaced, self.out)
        self.check_free()

    @property
    def committed(self) -> bool:
        """Tell whether the folder that :meth:`open` has locked is OUT by now."""
        return self._committed or (self._lock is not None and holds_lock(self._lock, self.out))

    def discard(self) -> None:
        """Remove the folder and what is in it, inside :meth:`open`; never one that is not, or no longer, its own."""
        if self._lock is not None:
            remove_locked_folder(self.folder, self._lock, self._files)

    def check_free(self) -> None:
        """Refuse an OUT, or what would be in the way of replacing it, that is there and may not be replaced."""
        check_replaceable(self.out, force=self._force)
        with write_errors(self._replaced):
            if self.out.exists() and self._replaced.exists():
                raise RecipeError(
                    f"{self._replaced} is in the way; it may be an earlier output that a stopped run has kept",
                    hint="move it away or remove it",
                )

    def clear(self) -> None:
        """Remove what an earlier run has left in the folder, inside :meth:`open`.

        Raises:
            ResourceError: If it cannot be removed.
        """
        clear_locked_folder(self.folder, self._files)


def working_folders(out: Path) -> tuple[Path, Path, Path]:
    """Return the folders that a run makes, moves or removes: OUT, OUT.partial, OUT.replaced.

    Raises:
        RecipeError: If OUT has no name of its own to derive others from, such as ``.`` or ``..``.
    """
    if out.name in {"", ".."}:
        raise RecipeError(f"'{out}' does not name an output", hint="give it a name of its own, such as ./merged")
    return out, out.with_name(out.name + ".partial"), out.with_name(out.name + ".replaced")


def check_replaceable(out: Path, *, force: bool) -> None:
    """Refuse an OUT that exists and is no empty folder, unless ``force`` is given and this program wrote all of it.

    Raises:
        RecipeError: With what is in the way.
    """
    with write_errors(out):
        if not out.exists() and not out.is_symlink():
            return
        if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
            return
        if not force:
            raise RecipeError(f"{out} exists", hint="choose another name, or replace it with --force")
        if out.is_symlink() or not out.is_dir():
            raise RecipeError(f"{out} is not a folder; --force replaces what merge-cli wrote")
        others = _others(out)
    if others is None:
        raise RecipeError(
            f"{out} was not written by merge-cli: it has no {DIGEST_FILE}; --force replaces what merge-cli wrote",
            hint="move it away, or choose another name",
        )
    if others:
        raise RecipeError(
            f"{out} holds {listed(others, most=_MOST_NAMED)}, not written by merge-cli; --force does not delete that",
            hint="move the rest away, or choose another name",
        )


def _others(out: Path) -> list[str] | None:
    """Return what in a folder is not listed among the files written there; None where there is no such list."""
    files = Files()
    if DIGEST_FILE not in files.list_names(out):
        return None
    try:
        known = {DIGEST_FILE, *_OWN, *read_digests(out, files)[0]}
    except CheckpointError:
        return None
    return sorted(name for name in files_below(out) if name not in known)


def check_no_overlap(out: Path, source: Path, what: str) -> None:
    """Refuse an OUT that is, or contains, what it is made from.

    Args:
        out: The output.
        source: File or folder that is read.
        what: What to call it.

    Raises:
        RecipeError: With what is in the way.
    """
    try:
        target, root = out.resolve(), source.resolve()
    # Links that lead to themselves are a RuntimeError before Python 3.13.
    except (OSError, RuntimeError) as error:
        raise RecipeError(f"{out} is behind links that lead to themselves", hint="choose another folder") from error
    if target == root or target in root.parents:
        relation = "is" if target == root else "contains"
        raise RecipeError(f"{out} {relation} {what}", hint="choose another folder for the output")
