"""The folder in which an output is made, and how it gets its final name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.locking import LOCK, clear_locked, discard_locked, is_in, locked
from merge_cli.checkpoint.turning import writing
from merge_cli.errors import RecipeError, ResourceError

# In OUT.partial: what is called OUT.replaced is the checkpoint that the new one replaces. In OUT: so is OUT.partial.
_REPLACING = ".replacing"
_WEIGHTS = frozenset(
    {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}
)


class Staging:
    """The folder ``OUT.partial`` in which an output is made; OUT itself appears complete or not at all.

    Raises:
        RecipeError: If OUT has no name of its own to derive others from, such as ``.`` or ``..``.
    """

    def __init__(self, out: Path, *, force: bool, files: Files | None = None) -> None:
        if out.name in {"", ".."}:
            raise RecipeError(f"'{out}' does not name an output", hint="give it a name of its own, such as ./merged")
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self._replaced = out.with_name(out.name + ".replaced")
        self._files = files or Files()
        self._force = force
        self._lock: int | None = None
        self._committed = False

    @contextlib.contextmanager
    def open(self, *, clear: bool = True) -> Iterator[Path]:
        """Make the folder and lock it against other runs.

        Args:
            clear: Whether what a run that died has left in it is removed.

        Raises:
            ResourceError: If another process is working in it, or it cannot be made.
            RecipeError: If OUT exists and may not be replaced, or if the folder was not made by such a run.
        """
        if self._force:
            self._finish_replacing()
        self._check_free()
        busy = f"another process is writing {self.folder}"
        with locked(self.folder, self._files, run="run", busy=busy) as self._lock:
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
        self._check_free()
        try:
            with writing(self.out):
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
        if self._files.exchange(self.folder, self.out):
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
        with contextlib.suppress(OSError):
            names = [name for name in self._files.names(self.out) if name.startswith(".")]
            if _REPLACING in names:
                self._remove_old()
            for name in sorted(names, key=lambda name: (name == LOCK, name == _REPLACING)):
                self._files.remove(self.out / name)

    def _remove_old(self) -> None:
        if self._replaced.exists():
            self._files.remove_folder(self._replaced)
        # It was exchanged and not renamed yet.
        if self.folder.exists() and LOCK not in self._files.names(self.folder):
            self._files.remove_folder(self.folder)

    def _finish_replacing(self) -> None:
        """Remove what a run has left that was killed after it had replaced OUT."""
        lock = self.out / LOCK
        with writing(self.out):
            if not lock.exists() or not (self.out / _REPLACING).exists():
                return
            fd = self._files.open_write(lock)
            try:
                if not self._files.lock(fd):
                    raise ResourceError(f"another process is writing {self.out}", hint="wait for it, or stop it")
                self._clean()
            finally:
                self._files.close(fd)

    def _put_back(self) -> None:
        """Give the older OUT its name again where a run was killed between the two renames that replace it."""
        with writing(self.out):
            mark = self.folder / _REPLACING
            if mark.exists() and self._replaced.exists() and not self.out.exists():
                self._files.rename(self._replaced, self.out)
        self._check_free()

    @property
    def committed(self) -> bool:
        """Whether the folder that :meth:`open` has locked is OUT by now."""
        return self._committed or (self._lock is not None and is_in(self._lock, self.out))

    def discard(self) -> None:
        """Remove the folder and what is in it, inside :meth:`open`; never one that is not, or no longer, its own."""
        if self._lock is not None:
            discard_locked(self.folder, self._lock, self._files)

    def _check_free(self) -> None:
        check_replaceable(self.out, force=self._force)
        with writing(self._replaced):
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
        clear_locked(self.folder, self._files)


def check_replaceable(out: Path, *, force: bool) -> None:
    """Refuse an OUT that exists, unless ``force`` is given and it is a checkpoint or an empty folder.

    Raises:
        RecipeError: With what is in the way.
    """
    with writing(out):
        if not out.exists() and not out.is_symlink():
            return
        if not force:
            raise RecipeError(f"{out} exists", hint="choose another name, or replace it with --force")
        if out.is_symlink() or not out.is_dir():
            raise RecipeError(f"{out} is not a folder; --force replaces checkpoints only")
        names = {path.name for path in out.iterdir()}
    # Many a folder that is no checkpoint has a config.json, or holds safetensors files of several models.
    whole = "config.json" in names and any(name.endswith(".safetensors") for name in names)
    if names and not whole and not names & _WEIGHTS:
        raise RecipeError(f"{out} does not look like a checkpoint; --force replaces checkpoints only")


def check_apart(out: Path, source: Path, what: str) -> None:
    """Refuse an OUT that is, or contains, what it is made from.

    Args:
        out: The output.
        source: File or folder that is read.
        what: What to call it.

    Raises:
        RecipeError: With what is in the way.
    """
    target, root = out.resolve(), source.resolve()
    if target == root or target in root.parents:
        relation = "is" if target == root else "contains"
        raise RecipeError(f"{out} {relation} {what}", hint="choose another folder for the output")
