"""Cache of open file descriptors."""

from __future__ import annotations

import contextlib
import itertools
import resource
import threading
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
        self._open: dict[Path, _Descriptor] = {}
        self._clock = itertools.count()

    def use(self, path: Path) -> _Descriptor:
        """Return a context whose value is the descriptor of a file, which stays open until the context ends."""
        with self._lock:
            held = self._open.get(path)
            if held is None:
                self._close_idle()
                held = self._open[path] = _Descriptor(self._open_file(path), self._lock)
            held.users += 1
            held.used = next(self._clock)
            return held

    def close(self) -> None:
        """Close every file, also where closing one of them fails; the last failure is raised."""
        with contextlib.ExitStack() as stack:
            while self._open:
                path, held = self._open.popitem()
                stack.callback(self._close_file, path, held.fd)

    def _close_idle(self) -> None:
        idle = sorted((held.used, path) for path, held in self._open.items() if not held.users)
        for _, path in idle[: max(0, len(self._open) - self._most_open + 1)]:
            self._close_file(path, self._open.pop(path).fd)


class _Descriptor:
    """An open file: how many use it now, and when it was last asked for."""

    __slots__ = ("_lock", "fd", "used", "users")

    def __init__(self, fd: int, lock: threading.Lock) -> None:
        self.fd, self._lock, self.users, self.used = fd, lock, 0, 0

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self.users -= 1
