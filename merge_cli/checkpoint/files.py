"""The one seam between this project and the operating system's files.

Everything that reads tensor data or writes output goes through a :class:`Files`, so that a test can make any single
call fail. Calls that failed are turned into errors that name the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from merge_cli.errors import CheckpointError, MergeError, ResourceError

# Linux transfers at most this many bytes in one call, whatever is asked for.
_MOST_PER_CALL = 0x7FFF_F000
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The umask may take more away; nothing that is made may be changed by everyone.
_FILE_MODE = 0o664
_FOLDER_MODE = 0o775
_AT_A_TIME = 2**20
# Of renameat2: paths start from the working directory; swap; and what systems say that have no such swap.
_HERE, _EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV}


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

    def expect(self, fd: int, offset: int, count: int) -> None:
        """Tell the system that bytes of a file are about to be read, so that it begins to."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)

    def forget(self, fd: int, offset: int, count: int) -> None:
        """Tell the system that bytes of a file are not needed again, so that others' files may stay in memory."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_DONTNEED)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder its new name, atomically."""
        os.rename(old, new)  # noqa: PTH104 - Path.rename would hide which call this is

    def exchange(self, one: Path, other: Path) -> bool:
        """Swap the names of two folders, atomically; return False where the system or the file system cannot."""
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if renameat2 is None:
            return False
        if not renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
            return True
        number = ctypes.get_errno()
        if number in _CANNOT_EXCHANGE:
            return False
        raise OSError(number, os.strerror(number))

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

    def remove_empty_folder(self, path: Path) -> None:
        """Remove a folder in which nothing is."""
        path.rmdir()

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
        with reading(path):
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


class _Turning:
    """Turns an OSError of its block into an error of ours, at a third of the cost of what contextlib would make."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise self.turned(error) from error

    def turned(self, error: OSError) -> MergeError:
        """Return what is raised instead."""
        raise NotImplementedError


class reading(_Turning):
    """Turn an OSError of the block into a CheckpointError that names the file."""

    __slots__ = ()

    def turned(self, error: OSError) -> MergeError:
        """Return what is raised instead."""
        return CheckpointError(f"cannot read {self._path}: {error.strerror or error}")


@contextlib.contextmanager
def reading_back() -> Iterator[None]:
    """Turn a CheckpointError of the block into a ResourceError: what cannot be read is not an input but the output."""
    try:
        yield
    except CheckpointError as error:
        raise ResourceError(error.message) from error.__cause__


class writing(_Turning):
    """Turn an OSError of the block into a ResourceError that names the file."""

    __slots__ = ()

    def turned(self, error: OSError) -> MergeError:
        """Return what is raised instead."""
        hint = "free some disk space or write elsewhere" if error.errno in _FULL else None
        return ResourceError(f"cannot write {self._path}: {error.strerror or error}", hint=hint)
