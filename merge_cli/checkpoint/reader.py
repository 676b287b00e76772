"""Positioned reads of tensor data into buffers that the caller owns.

No file is mapped: a mapped file that is truncated meanwhile kills the process, and mapped pages count as its memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from merge_cli.checkpoint.files import Files, reading
from merge_cli.checkpoint.header import FileIdentity, StoredTensor
from merge_cli.errors import CheckpointError


class Reader:
    """Keeps input files open, at most ``most_open`` of them, and reads ranges of their tensors; safe to share.

    Args:
        identities: The files that may be read, as they were when planned; one that has changed since is refused.
        files: The system calls to use.
        most_open: Descriptors held at a time.
    """

    def __init__(self, identities: Iterable[FileIdentity], files: Files | None = None, *, most_open: int = 128) -> None:
        self._identities = {identity.path: identity for identity in identities}
        self._files = files or Files()
        self._most_open = most_open
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._users: dict[Path, int] = {}

    def read_into(self, view: memoryview, tensor: StoredTensor, start: int) -> None:
        """Fill ``view`` with the bytes of a tensor from element ``start``.

        Raises:
            CheckpointError: If the file has changed since the plan was made, ends early, or cannot be read.
        """
        fd = self._acquire(tensor.file)
        try:
            self._files.read_exactly(fd, view, tensor.offset + start * tensor.dtype.itemsize, tensor.file)
        finally:
            self._release(tensor.file)

    def _acquire(self, path: Path) -> int:
        with self._lock:
            if path not in self._open:
                self._close_idle()
                self._open[path] = self._open_checked(path)
            self._open.move_to_end(path)
            self._users[path] = self._users.get(path, 0) + 1
            return self._open[path]

    def _release(self, path: Path) -> None:
        with self._lock:
            self._users[path] -= 1

    def _close_idle(self) -> None:
        idle = [path for path in self._open if not self._users.get(path)]
        for path in idle[: max(0, len(self._open) - self._most_open + 1)]:
            self._files.close_read(self._open.pop(path))

    def _open_checked(self, path: Path) -> int:
        identity = self._identities[path]
        with reading(path):
            fd = self._files.open_read(path)
            try:
                stat = self._files.stat(fd)
                if (stat.st_size, stat.st_mtime_ns) != (identity.size, identity.mtime_ns):
                    raise CheckpointError(
                        f"{path} has changed since the merge was planned", hint="start the merge again"
                    )
            except BaseException:
                self._files.close_read(fd)
                raise
            return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while self._open:
            self._files.close_read(self._open.popitem()[1])
