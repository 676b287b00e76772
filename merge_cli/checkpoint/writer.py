"""An output checkpoint: space reserved first, blocks written at their offsets in any order, the name given last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from merge_cli.checkpoint.descriptors import Descriptors
from merge_cli.checkpoint.files import Files, writing
from merge_cli.checkpoint.header import StoredTensor
from merge_cli.checkpoint.layout import Layout
from merge_cli.errors import RecipeError, ResourceError
from merge_cli.units import format_bytes

_LOCK = ".lock"
_WEIGHTS = frozenset(
    {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}
)


class ShardWriter:
    """Writes the shards of a layout into a folder; :meth:`write` may be called from many threads.

    Raises:
        ResourceError: If the disk cannot hold the layout; nothing has been computed by then.
    """

    def __init__(self, folder: Path, layout: Layout, files: Files | None = None) -> None:
        self._files = files or Files()
        self._paths = {shard.file: folder / shard.file for shard in layout.shards}
        self._sizes: dict[Path, int] = {}
        self._open = Descriptors(self._open_shard, self._close_shard)
        with writing(folder):
            free = self._files.free(folder)
            missing = layout.nbytes - _reserved(folder, layout)
        if missing > free:
            raise ResourceError(
                f"{folder} has {format_bytes(free)} free, the output takes {format_bytes(missing)}",
                hint="free some disk space, write elsewhere, or choose a smaller out_dtype",
            )
        try:
            for shard in layout.shards:
                path = self._paths[shard.file]
                with self._open.use(path) as fd:
                    with writing(path):
                        self._files.reserve(fd, shard.size)
                    self._files.write_all(fd, memoryview(shard.header), 0, path)
                self._sizes[path] = shard.size
        except BaseException:
            with contextlib.suppress(ResourceError):
                self.close()
            raise

    def write(self, view: memoryview, place: StoredTensor, start: int) -> None:
        """Write bytes of a tensor from element ``start``."""
        path = self._paths[place.file.name]
        with self._open.use(path) as fd:
            self._files.write_all(fd, view, place.offset + start * place.dtype.itemsize, path)

    def read_back(self, view: memoryview, name: str, offset: int) -> None:
        """Fill ``view`` with the bytes of a shard from ``offset``, as they were written."""
        with self._open.use(self._paths[name]) as fd:
            self._files.read_exactly(fd, view, offset, self._paths[name])

    def sync(self) -> None:
        """Return when all that was written is on the device."""
        for path in self._paths.values():
            with self._open.use(path) as fd, writing(path):
                self._files.sync(fd)

    def close(self) -> None:
        """Close the files.

        Raises:
            ResourceError: If the system reports now that it could not keep what was written; all are closed even so.
        """
        self._open.close()

    def _open_shard(self, path: Path) -> int:
        with writing(path):
            fd = self._files.open_write(path)
            # Opening makes a file that is gone, and what was written to it before would be lost without a word.
            if self._files.stat(fd).st_size == self._sizes.get(path, self._files.stat(fd).st_size):
                return fd
            self._files.close(fd)
        raise ResourceError(f"{path} was changed or removed while it was written")

    def _close_shard(self, path: Path, fd: int) -> None:
        with writing(path):
            self._files.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # What went wrong first is what the user must hear of.
        with contextlib.suppress(ResourceError) if error is not None else contextlib.nullcontext():
            self.close()


def _reserved(folder: Path, layout: Layout) -> int:
    """Return how many bytes of a layout an earlier run has reserved already."""
    paths = [folder / shard.file for shard in layout.shards]
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())


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
        self._owned = False

    @contextlib.contextmanager
    def open(self, *, clear: bool = True) -> Iterator[Path]:
        """Make the folder and lock it against other runs.

        Args:
            clear: Whether what a run that died has left in it is removed.

        Raises:
            ResourceError: If another process is working in it, or it cannot be made.
            RecipeError: If OUT exists and may not be replaced, or if the folder was not made by such a run.
        """
        self._check_free()
        with writing(self.folder):
            self._files.make_folder(self.folder)
            names = self._files.names(self.folder)
            if names and _LOCK not in names:
                raise RecipeError(
                    f"{self.folder} is in the way, and no earlier run has made it",
                    hint="move it away, or choose another name for the output",
                )
            fd = self._files.open_write(self.folder / _LOCK)
        try:
            with writing(self.folder):
                if not self._take_lock(fd):
                    raise ResourceError(f"another process is writing {self.folder}", hint="wait for it, or stop it")
                self._owned = True
            if clear:
                self.clear()
            yield self.folder
        finally:
            with writing(self.folder):
                self._files.close(fd)

    def commit(self, *, sync: bool) -> None:
        """Give the folder its final name, inside :meth:`open`; an OUT that may be replaced goes only after that."""
        self._check_free()
        with writing(self.out):
            if sync:
                self._files.sync_folder(self.folder)
            replacing = self.out.exists()
            if replacing:
                self._files.rename(self.out, self._replaced)
            try:
                self._files.rename(self.folder, self.out)
            except BaseException:
                if replacing:
                    self._files.rename(self._replaced, self.out)
                raise
            self._owned = False
            if sync:
                self._files.sync_folder(self.out.parent)
        # The output is there and complete: whatever fails from here on is no reason to call it otherwise.
        with contextlib.suppress(OSError):
            # Not before: a run that starts now would find the folder unlocked.
            for name in self._files.names(self.out):
                if name.startswith("."):
                    self._files.remove(self.out / name)
        if replacing:
            with contextlib.suppress(OSError):
                self._files.remove_folder(self._replaced)

    @property
    def committed(self) -> bool:
        """Whether the folder is no longer this run's: it has its final name, or never was."""
        return not self._owned

    def discard(self) -> None:
        """Remove the folder and what is in it, best inside :meth:`open`; never the folder of a run that was refused."""
        if self._owned:
            with contextlib.suppress(OSError):
                self._files.remove_folder(self.folder)
            self._owned = False

    def _check_free(self) -> None:
        check_replaceable(self.out, force=self._force)
        with writing(self._replaced):
            if self.out.exists() and self._replaced.exists():
                raise RecipeError(
                    f"{self._replaced} is in the way; it may be an earlier output that a stopped run has kept",
                    hint="move it away or remove it",
                )

    def _take_lock(self, fd: int) -> bool:
        try:
            # Its holder may have committed between our opening and locking it, and its name gone with the folder.
            return self._files.lock(fd) and os.path.samestat(self._files.stat(fd), (self.folder / _LOCK).stat())
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Remove what an earlier run has left in the folder, inside :meth:`open`.

        Raises:
            ResourceError: If it cannot be removed.
        """
        with writing(self.folder):
            for name in self._files.names(self.folder):
                path = self.folder / name
                if name == _LOCK:
                    continue
                if path.is_dir() and not path.is_symlink():
                    self._files.remove_folder(path)
                else:
                    self._files.remove(path)


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
