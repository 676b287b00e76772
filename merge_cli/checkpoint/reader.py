"""Positioned reads of tensor data into the caller's buffers.

No file is mapped: a mapped file that is truncated meanwhile kills the process, and mapped pages count as its memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from merge_cli.checkpoint.fd_cache import Descriptors
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.header import FileIdentity, place_of
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.checkpoint.sources import Source
from merge_cli.checkpoint.torch_bin import read_any_header
from merge_cli.errors import CheckpointError


class Reader:
    """Reads ranges of tensors through few descriptors; safe to share.

    A file that has changed since it was planned is refused when it is opened, and by :meth:`check_unchanged` at the end
    of the work, because what was read before a change does not go with what was read after it. It has changed

    * if its size or its time of writing are others;
    * if another file has taken its name after it was read from;
    * if the system has noted any other change (ctime), or another file has taken its name before it was read from, and
      its header or the sample of its numbers are others. New links, owners and modes and what backups do are such
      changes too, and must not end the work of hours; nor must a copy that is as good as what it replaces.

    Args:
        identities: The files that may be read, as they were when planned.
        files: The system calls to use.
        most_open: Descriptors held at a time; default: by the process's limit.
    """

    def __init__(
        self, identities: Iterable[FileIdentity], files: Files | None = None, *, most_open: int | None = None
    ) -> None:
        self._identities = {identity.path: identity for identity in identities}
        self._files = files or Files()
        self._open = Descriptors(self._open_checked, lambda path, fd: self._files.close_read(fd), most_open=most_open)
        self._seen: dict[Path, tuple[int, int, int]] = {}

    def __reduce__(self) -> tuple[type[Self], tuple[list[FileIdentity], Files]]:
        """Return what another process makes its own from: the same files, none of them open yet."""
        return type(self), (list(self._identities.values()), self._files)

    def read_raw(self, view: memoryview, path: Path, offset: int) -> None:
        """Fill ``view`` with the bytes of a file from ``offset``.

        Raises:
            CheckpointError: If the file has changed since the plan was made, ends early, or cannot be read.
        """
        with self._open.use(path) as fd:
            self._files.read_exactly(fd, view, offset, path)

    def read_bytes(self, source: Source, start: int, count: int) -> bytearray:
        """Return the bytes behind ``count`` elements of a tensor from ``start``; errors as for :meth:`read_raw`."""
        ranges = list(source.byte_ranges(start, count))
        found = bytearray(sum(nbytes for _, _, nbytes in ranges))
        view, done = memoryview(found), 0
        for path, offset, nbytes in ranges:
            self.read_raw(view[done : done + nbytes], path, offset)
            done += nbytes
        return found

    def open_all(self, paths: Iterable[Path]) -> None:
        """Open files that will be read in processes forked from this one, so that a change of theirs is seen here too.

        Raises:
            CheckpointError: As for :meth:`read_raw`.
        """
        for path in dict.fromkeys(paths):
            with self._open.use(path):
                pass

    def read_ahead(self, source: Source, start: int, count: int) -> None:
        """Say that elements of a tensor will be read, so that the system begins to; it may not listen."""
        for path, offset, nbytes in source.byte_ranges(start, count):
            with self._open.use(path) as fd, contextlib.suppress(OSError):
                self._files.read_ahead(fd, offset, nbytes)

    def drop_cache(self, source: Source, start: int, count: int, kept: Container[Path] = ()) -> None:
        """Say that elements of a tensor, but for files in ``kept``, will not be read again; it may not listen."""
        for path, offset, nbytes in source.byte_ranges(start, count):
            if path not in kept:
                self.forget_raw(path, offset, nbytes)

    def forget_raw(self, path: Path, offset: int, count: int) -> None:
        """Say that bytes of a file will not be read again; the system may not listen."""
        with self._open.use(path) as fd, contextlib.suppress(OSError):
            self._files.drop_cache(fd, offset, count)

    def check_unchanged(self) -> None:
        """Refuse files that were replaced or written to since they were planned, of those that were read.

        Raises:
            CheckpointError: Naming the file.
        """
        for path in list(self._seen):
            with read_errors(path):
                self._check(path, self._files.stat_path(path))

    def untouched(self, identity: FileIdentity) -> bool:
        """Tell whether a file was the one that was planned, without even a change of its mode, when last looked at."""
        return self._seen.get(identity.path, identity.place) == identity.place

    def changed(self, path: Path) -> CheckpointError:
        """Return the error that says that a file has changed."""
        return CheckpointError(f"{path} has changed since the merge was planned", hint="start the merge again")

    def _open_checked(self, path: Path) -> int:
        with read_errors(path):
            fd = self._files.open_read(path)
            try:
                self._check(path, self._files.stat(fd))
            except BaseException:
                self._files.close_read(fd)
                raise
            return fd

    def _check(self, path: Path, stat: os.stat_result) -> None:
        identity, place, seen = self._identities[path], place_of(stat), self._seen.get(path)
        changed = (stat.st_size, stat.st_mtime_ns) != (identity.size, identity.mtime_ns)
        replaced = seen is not None and seen[:2] != place[:2]
        if changed or replaced or (place != (seen or identity.place) and not self._holds_same(identity, place)):
            raise self.changed(path)
        self._seen[path] = place

    def _holds_same(self, identity: FileIdentity, place: tuple[int, int, int]) -> bool:
        """Tell whether the file of this name is the one at ``place``, with the planned header and sample."""
        path = identity.path
        try:
            header = read_any_header(path, self._files)[0]
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return False
        return header.identity.content == identity.content and header.identity.place == place

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
