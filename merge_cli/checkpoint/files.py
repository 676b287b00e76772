"""File operations built from system calls.

Everything that reads tensor data or writes output goes through a :class:`Files`, so that a test can make any single
call fail. Calls that failed are turned into errors that name the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from merge_cli.checkpoint.os_errors import read_errors, write_errors
from merge_cli.checkpoint.syscalls import SystemCalls
from merge_cli.errors import CheckpointError

# Linux transfers at most this many bytes in one call, whatever is asked for.
_MOST_PER_CALL = 0x7FFF_F000
_AT_A_TIME = 2**20


class Files(SystemCalls):
    """The system calls, and what is built from them; subclass it to inject faults."""

    def read_exactly(self, fd: int, view: memoryview, offset: int, path: Path) -> None:
        """Fill ``view``, a view of single bytes, from ``offset``.

        Raises:
            CheckpointError: If the file ends before, or cannot be read.
        """
        _check_bytes(view)
        done = 0
        with read_errors(path):
            while done < len(view):
                count = self.pread(fd, view[done : done + _MOST_PER_CALL], offset + done)
                if count <= 0:
                    raise CheckpointError(
                        f"{path} ends at byte {offset + done}, expected {len(view) - done} bytes more",
                        hint="the file is truncated or was changed while it was read; download or copy it again",
                    )
                done += count

    def read_whole(self, path: Path, *, most: int) -> bytes:
        """Return all of a small file.

        Raises:
            CheckpointError: If it has more than ``most`` bytes, is no regular file, cannot be read, or grows meanwhile.
        """
        with self._opened(path) as (fd, size):
            if size > most:
                raise CheckpointError(f"{path} has {size} bytes, expected {most} at most", hint="is it the right file?")
            content = bytearray(size)
            self.read_exactly(fd, memoryview(content), 0, path)
            self._check_end(fd, size, path)
        return bytes(content)

    def copy(self, source: Path, target: Path, *, sync: bool) -> str:
        """Copy a file to a new name, a part of it in memory at a time; return the SHA-256 of what was copied."""
        digest = hashlib.sha256()
        with self._opened(source) as (fd, size):
            self._write_new(target, size, self._parts(fd, size, source, digest), sync=sync)
            self._check_end(fd, size, source)
        return digest.hexdigest()

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file in hexadecimal.

        Raises:
            CheckpointError: If it cannot be read, or grows meanwhile.
        """
        digest = hashlib.sha256()
        with self._opened(path) as (fd, size):
            for _ in self._parts(fd, size, path, digest):
                pass
            self._check_end(fd, size, path)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[tuple[int, int]]:
        """Yield the descriptor and the size of a file that is only read."""
        with read_errors(path):
            fd = self.open_read(path)
            try:
                yield fd, self.stat(fd).st_size
            finally:
                self.close_read(fd)

    def _parts(self, fd: int, size: int, path: Path, digest: hashlib._Hash) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(size, _AT_A_TIME)))
        for start in range(0, size, _AT_A_TIME):
            part = buffer[: size - start]
            self.read_exactly(fd, part, start, path)
            digest.update(part)
            yield part

    def _check_end(self, fd: int, size: int, path: Path) -> None:
        if self.pread(fd, memoryview(bytearray(1)), size):
            raise CheckpointError(f"{path} has grown while it was read", hint="start again when it is complete")

    def close_read(self, fd: int) -> None:
        """Close what was only read; that the system complains of it then says nothing about what was read."""
        with contextlib.suppress(OSError):
            self.close(fd)

    def write_all(self, fd: int, view: memoryview, offset: int, path: Path) -> None:
        """Write all of ``view``, a view of single bytes, at ``offset``.

        Raises:
            ResourceError: If the disk is full or refuses.
        """
        _check_bytes(view)
        done = 0
        with write_errors(path):
            while done < len(view):
                count = self.pwrite(fd, view[done : done + _MOST_PER_CALL], offset + done)
                if count <= 0:
                    raise OSError(errno.EIO, "the system wrote nothing")
                done += count

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        with write_errors(folder):
            fd = self.open_folder(folder)
            try:
                self.sync(fd)
            finally:
                self.close(fd)

    def write_new(self, path: Path, content: bytes, *, sync: bool) -> None:
        """Write a small file in one go, in place of one that has the name."""
        self._write_new(path, len(content), [memoryview(content)], sync=sync)

    def _write_new(self, path: Path, size: int, parts: Iterable[memoryview], *, sync: bool) -> None:
        with write_errors(path):
            fd = self.open_write(path)
            try:
                self.reserve(fd, size)
                done = 0
                for part in parts:
                    self.write_all(fd, part, done, path)
                    done += len(part)
                if sync:
                    self.sync(fd)
            finally:
                self.close(fd)


def _check_bytes(view: memoryview) -> None:
    # The system counts bytes and len() counts items, so that a short read of wider items would leave a hole.
    if view.nbytes != len(view):
        raise TypeError(f"expected a view of single bytes, got items of format '{view.format}'; cast it to 'B'")
