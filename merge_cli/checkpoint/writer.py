"""The shards of an output checkpoint: space reserved first, blocks written at their offsets in any order."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from merge_cli.checkpoint.extent import Extent
from merge_cli.checkpoint.fd_cache import Descriptors
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.layout import Layout
from merge_cli.checkpoint.os_errors import output_read_errors, write_errors
from merge_cli.errors import ResourceError
from merge_cli.text import format_bytes


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
        with write_errors(folder):
            free = self._files.free_bytes(folder)
            missing = layout.nbytes - _reserved(folder, layout)
        check_room(folder, missing, free)
        try:
            for shard in layout.shards:
                path = self._paths[shard.file]
                with self._open.use(path) as fd:
                    with write_errors(path):
                        self._files.reserve(fd, shard.size)
                    self._files.write_all(fd, memoryview(shard.header), 0, path)
                self._sizes[path] = shard.size
        except BaseException:
            with contextlib.suppress(ResourceError):
                self.close()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process makes its own from, which writes to the files that are there."""
        return {"files": self._files, "paths": self._paths, "sizes": self._sizes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._files, self._paths, self._sizes = state["files"], state["paths"], state["sizes"]
        self._open = Descriptors(self._open_shard, self._close_shard)

    def write(self, view: memoryview, target: Extent, start: int) -> None:
        """Write bytes of a tensor from element ``start``."""
        path = self._paths[target.file.name]
        with self._open.use(path) as fd:
            self._files.write_all(fd, view, target.offset + start * target.dtype.itemsize, path)

    def read_back(self, view: memoryview, name: str, offset: int) -> None:
        """Fill ``view`` with the bytes of a shard from ``offset``, as they were written.

        Raises:
            ResourceError: If the system does not give them back.
        """
        path = self._paths[name]
        with self._open.use(path) as fd, output_read_errors():
            self._files.read_exactly(fd, view, offset, path)

    def sync(self) -> None:
        """Return when all that was written is on the device."""
        for path in self._paths.values():
            with self._open.use(path) as fd, write_errors(path):
                self._files.sync(fd)

    def drop_cache(self) -> None:
        """Say that what was written, and synced, will not be read soon; the system may not listen."""
        for path in self._paths.values():
            with self._open.use(path) as fd, contextlib.suppress(OSError):
                self._files.drop_cache(fd, 0, self._sizes[path])

    def close(self) -> None:
        """Close the files.

        Raises:
            ResourceError: If the system reports now that it could not keep what was written; all are closed even so.
        """
        self._open.close()

    def _open_shard(self, path: Path) -> int:
        with write_errors(path):
            fd = self._files.open_write(path)
            try:
                size = self._files.stat(fd).st_size
            except BaseException:
                self._files.close(fd)
                raise
            # Opening makes a file that is gone, and what was written to it before would be lost without a word.
            if size == self._sizes.get(path, size):
                return fd
            self._files.close(fd)
        raise ResourceError(f"{path} was changed or removed while it was written")

    def _close_shard(self, path: Path, fd: int) -> None:
        with write_errors(path):
            self._files.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # What went wrong first is what the user must hear of.
        with contextlib.suppress(ResourceError) if error is not None else contextlib.nullcontext():
            self.close()


def check_room(folder: Path, missing: int, free: int) -> None:
    """Refuse a file system that has not the bytes free which an output takes.

    Raises:
        ResourceError: With both numbers.
    """
    if missing > free:
        raise ResourceError(
            f"{folder} has {format_bytes(free)} free, the output takes {format_bytes(missing)}",
            hint="free some disk space, write elsewhere, or choose a smaller out_dtype",
        )


def _reserved(folder: Path, layout: Layout) -> int:
    """Return how many bytes of a layout an earlier run has reserved already."""
    paths = [folder / shard.file for shard in layout.shards]
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())
