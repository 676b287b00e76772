"""The one seam between this project and the operating system's files.

Everything that reads tensor data or writes output goes through a :class:`Files`, so that a test can make any single
call fail. Calls that failed are turned into errors that name the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from merge_cli.errors import CheckpointError, ResourceError

# Linux transfers at most this many bytes in one call, whatever is asked for.
_MOST_PER_CALL = 0x7FFF_F000
_HASHED_AT_ONCE = 2**20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The umask may take more away; nothing that is made may be changed by everyone.
_FILE_MODE = 0o664
_FOLDER_MODE = 0o775
_COPIED_AT_A_TIME = 2**20


class Files:
    """The system calls in use, one method each; subclass it to inject faults."""

    def open_read(self, path: Path) -> int:
        """Open a regular file for reading and return the descriptor.

        Opening anything else may wait for ever, as for a pipe that nobody writes to, and so may reading it.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "it is not a regular file")

    def open_folder(self, path: Path) -> int:
        """Open a folder and return the descriptor."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_write(self, path: Path) -> int:
        """Open for writing, making the file where it does not exist, and return the descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        """Read into ``view`` from ``offset`` and return how many bytes came; fewer is not an error here."""
        return os.preadv(fd, [view], offset)

    def pwrite(self, fd: int, view: memoryview, offset: int) -> int:
        """Write ``view`` at ``offset`` and return how many bytes went; fewer is not an error here."""
        return os.pwrite(fd, view, offset)

    def reserve(self, fd: int, size: int) -> None:
        """Make the file ``size`` bytes long and reserve them on disk, so that a full disk is known before the work."""
        os.ftruncate(fd, size)
        if size:
            os.posix_fallocate(fd, 0, size)

    def stat(self, fd: int) -> os.stat_result:
        """Return what is known of an open file."""
        return os.fstat(fd)

    def status(self, path: Path) -> os.stat_result:
        """Return what is known of the file that has this name now."""
        return path.stat()

    def sync(self, fd: int) -> None:
        """Return when the file's data is on the device."""
        os.fsync(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder its new name, atomically."""
        os.rename(old, new)  # noqa: PTH104 - Path.rename would hide which call this is

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it, where they are not there yet."""
        make_folder(path)

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder, in order."""
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted, not paths

    def remove(self, path: Path) -> None:
        """Remove a file that may be there."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder and what is in it."""
        shutil.rmtree(path)

    def lock(self, fd: int) -> bool:
        """Lock a file for this process alone; return False where another holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def free(self, folder: Path) -> int:
        """Return how many bytes the file system of a folder has free for this user."""
        return shutil.disk_usage(folder).free

    # What follows is built from the calls above.

    def read_exactly(self, fd: int, view: memoryview, offset: int, path: Path) -> None:
        """Fill ``view``, a view of single bytes, from ``offset``.

        Raises:
            CheckpointError: If the file ends before, or cannot be read.
        """
        _check_bytes(view)
        done = 0
        with reading(path):
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
            CheckpointError: If it has more than ``most`` bytes, is not a regular file, or cannot be read.
        """
        with reading(path):
            fd = self.open_read(path)
        try:
            with reading(path):
                size = self.stat(fd).st_size
            if size > most:
                raise CheckpointError(f"{path} has {size} bytes, expected {most} at most", hint="is it the right file?")
            content = bytearray(size)
            self.read_exactly(fd, memoryview(content), 0, path)
        finally:
            self.close(fd)
        return bytes(content)

    def copy(self, source: Path, target: Path, *, sync: bool) -> None:
        """Copy a file to a new name, a part of it in memory at a time."""
        with reading(source):
            fd = self.open_read(source)
        try:
            with reading(source):
                size = self.stat(fd).st_size
            self._write_new(target, size, self._parts(fd, size, source), sync=sync)
        finally:
            self.close(fd)

    def _parts(self, fd: int, size: int, path: Path) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(size, _COPIED_AT_A_TIME)))
        for start in range(0, size, _COPIED_AT_A_TIME):
            part = buffer[: size - start]
            self.read_exactly(fd, part, start, path)
            yield part

    def write_all(self, fd: int, view: memoryview, offset: int, path: Path) -> None:
        """Write all of ``view``, a view of single bytes, at ``offset``.

        Raises:
            ResourceError: If the disk is full or refuses.
        """
        _check_bytes(view)
        done = 0
        with writing(path):
            while done < len(view):
                count = self.pwrite(fd, view[done : done + _MOST_PER_CALL], offset + done)
                if count <= 0:
                    raise OSError(errno.EIO, "the system wrote nothing")
                done += count

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        with writing(folder):
            fd = self.open_folder(folder)
            try:
                self.sync(fd)
            finally:
                self.close(fd)

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file in hexadecimal.

        Raises:
            CheckpointError: If it cannot be read.
        """
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASHED_AT_ONCE))
        with self._opened(path) as fd:
            left, offset = self.stat(fd).st_size, 0
            while offset < left:
                view = buffer[: left - offset]
                self.read_exactly(fd, view, offset, path)
                digest.update(view)
                offset += len(view)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        with reading(path):
            fd = self.open_read(path)
            try:
                yield fd
            finally:
                self.close(fd)

    def write_new(self, path: Path, content: bytes, *, sync: bool) -> None:
        """Write a small file in one go, in place of one that has the name."""
        self._write_new(path, len(content), [memoryview(content)], sync=sync)

    def _write_new(self, path: Path, size: int, parts: Iterable[memoryview], *, sync: bool) -> None:
        with writing(path):
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


def make_folder(path: Path) -> None:
    """Make a folder and those on the way to it, where they are not there yet."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(_FOLDER_MODE, exist_ok=True)
    if not path.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def open_lock(path: Path) -> int:
    """Open the file by which a process holds a folder for itself, making it where it is not there yet."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)


def _check_bytes(view: memoryview) -> None:
    # The system counts bytes and len() counts items, so that a short read of wider items would leave a hole.
    if view.nbytes != len(view):
        raise TypeError(f"expected a view of single bytes, got items of format '{view.format}'; cast it to 'B'")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a ResourceError that names the file."""
    try:
        yield
    except OSError as error:
        hint = "free some disk space or write elsewhere" if error.errno in _FULL else None
        raise ResourceError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error
