"""Files that stay open for as long as there is room for them."""

from __future__ import annotations

import contextlib
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


def most_descriptors() -> int:
    """Return how many files one of the few users of many files may keep open: a quarter of what the process may."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 256 if soft == resource.RLIM_INFINITY else max(1, min(256, soft // 4))


class Descriptors:
    """Keeps files open, at most ``most_open`` of them, and closes the one used longest ago; safe to share.

    Args:
        open_file: Opens a file and returns the descriptor.
        close_file: Closes it.
        most_open: Descriptors held at a time, those in use at one moment not counted; default: by the process's limit.
    """

    def __init__(
        self,
        open_file: Callable[[Path], int],
        close_file: Callable[[Path, int], None],
        *,
        most_open: int | None = None,
    ) -> None:
        self._open_file = open_file
        self._close_file = close_file
        self._most_open = most_open or most_descriptors()
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._users: dict[Path, int] = {}

    def use(self, path: Path) -> _Use:
        """Return a context whose value is the descriptor of a file, opened where it is not open yet."""
        return _Use(self, path)

    def acquire(self, path: Path) -> int:
        """Return the descriptor of a file, which stays open until it is released."""
        with self._lock:
            if path not in self._open:
                self._close_idle()
                self._open[path] = self._open_file(path)
            self._open.move_to_end(path)
            self._users[path] = self._users.get(path, 0) + 1
            return self._open[path]

    def release(self, path: Path) -> None:
        """Say that a descriptor is no longer used."""
        with self._lock:
            self._users[path] -= 1

    def close(self) -> None:
        """Close every file, also where closing one of them fails; the last failure is raised."""
        with contextlib.ExitStack() as stack:
            while self._open:
                stack.callback(self._close_file, *self._open.popitem())

    def _close_idle(self) -> None:
        idle = [path for path in self._open if not self._users.get(path)]
        for path in idle[: max(0, len(self._open) - self._most_open + 1)]:
            self._close_file(path, self._open.pop(path))


class _Use:
    """The use of one file."""

    __slots__ = ("_descriptors", "_path")

    def __init__(self, descriptors: Descriptors, path: Path) -> None:
        self._descriptors, self._path = descriptors, path

    def __enter__(self) -> int:
        return self._descriptors.acquire(self._path)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._descriptors.release(self._path)
