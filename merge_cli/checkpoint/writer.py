"""The shards of an output checkpoint: space reserved first, blocks written at their offsets in any order."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

from merge_cli.checkpoint.files import Files, reading_back, writing
from merge_cli.checkpoint.header import StoredTensor
from merge_cli.checkpoint.layout import Layout
from merge_cli.errors import ResourceError
from merge_cli.units import format_bytes


class ShardWriter:
    """Writes the shards of a layout into a folder; :meth:`write` may be called from many threads.

    Raises:
        ResourceError: If the disk cannot hold the layout; nothing has been computed by then.
    """

    def __init__(self, folder: Path, layout: Layout, files: Files | None = None) -> None:
        self._files = files or Files()
        self._folder = folder
        self._descriptors: dict[str, int] = {}
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
                path = folder / shard.file
                with writing(path):
                    fd = self._descriptors[shard.file] = self._files.open_write(path)
                    self._files.reserve(fd, shard.size)
                self._files.write_all(fd, memoryview(shard.header), 0, path)
        except BaseException:
            with contextlib.suppress(ResourceError):
                self.close()
            raise

    def write(self, view: memoryview, place: StoredTensor, start: int) -> None:
        """Write bytes of a tensor from element ``start``."""
        name = str(place.file)
        offset = place.offset + start * place.dtype.itemsize
        self._files.write_all(self._descriptors[name], view, offset, self._folder / name)

    def read_back(self, view: memoryview, name: str, offset: int) -> None:
        """Fill ``view`` with the bytes of a shard from ``offset``, as they were written.

        Raises:
            ResourceError: If the system does not give them back.
        """
        with reading_back():
            self._files.read_exactly(self._descriptors[name], view, offset, self._folder / name)

    def sync(self) -> None:
        """Return when all that was written is on the device."""
        for name, fd in self._descriptors.items():
            with writing(self._folder / name):
                self._files.sync(fd)

    def close(self) -> None:
        """Close the files.

        Raises:
            ResourceError: If the system reports now that it could not keep what was written; all are closed even so.
        """
        with contextlib.ExitStack() as stack:
            while self._descriptors:
                stack.callback(self._close, *self._descriptors.popitem())

    def _close(self, name: str, fd: int) -> None:
        with writing(self._folder / name):
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
