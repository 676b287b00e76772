"""System calls on files, one method each: the seam at which tests inject faults."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from pathlib import Path

# The umask may take more away; nothing that is made may be changed by everyone.
_FILE_MODE = 0o664
_FOLDER_MODE = 0o775
# Of renameat2: paths start from the working directory; swap; and what systems say that have no such swap.
_HERE, _EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV}


class SystemCalls:
    """The system calls in use; each raises OSError."""

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

    def stat_path(self, path: Path) -> os.stat_result:
        """Return what is known of the file that has this name now."""
        return path.stat()

    def sync(self, fd: int) -> None:
        """Return when the file's data is on the device."""
        os.fsync(fd)

    def read_ahead(self, fd: int, offset: int, count: int) -> None:
        """Tell the system that bytes of a file are about to be read, so that it begins to."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)

    def drop_cache(self, fd: int, offset: int, count: int) -> None:
        """Tell the system that bytes of a file are not needed again, so that others' files may stay in memory."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_DONTNEED)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder its new name, atomically."""
        os.rename(old, new)  # noqa: PTH104 - Path.rename would hide which call this is

    def swap_names(self, one: Path, other: Path) -> bool:
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
        """Make a folder and those on the way to it, where they are not there yet."""
        for folder in (*reversed(path.parents), path):
            if not folder.exists():
                folder.mkdir(_FOLDER_MODE, exist_ok=True)
        if not path.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def list_names(self, folder: Path) -> list[str]:
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

    def free_bytes(self, folder: Path) -> int:
        """Return how many bytes the file system of a folder has free for this user."""
        return shutil.disk_usage(folder).free
