"""System calls that pass through one function, so that any of them can be counted, made to fail, or be the last."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Files

PRIMITIVES = (
    "open_read", "open_folder", "open_write", "pread", "pwrite", "reserve", "stat", "sync", "rename", "swap_names",
    "close", "stat_path", "read_ahead", "drop_cache", "make_folder", "list_names", "remove", "remove_folder",
    "remove_empty_folder", "lock", "free_bytes",
)  # fmt: skip
BUILT = ("read_exactly", "write_all", "sync_folder", "read_whole", "copy", "sha256", "close_read", "write_new")


@dataclass(frozen=True)
class Call:
    """One system call: the how-manyth, its name, its arguments, and the path that it is about."""

    number: int
    name: str
    arguments: tuple[Any, ...]
    path: Path


class Seam(Files):
    """Every primitive call goes through :meth:`around`."""

    def __init__(self) -> None:
        self.made: list[Call] = []
        self.held: dict[int, Path] = {}
        self._guard = threading.Lock()

    def around(self, call: Call, make: Callable[..., Any]) -> Any:
        """Make the call; ``make`` takes its arguments."""
        return make(*call.arguments)

    def _pass(self, name: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with self._guard:
            subject = arguments[0]
            path = subject if isinstance(subject, Path) else self.held.get(subject, Path())
            call = Call(len(self.made), name, arguments, path)
            self.made.append(call)
            if name == "close":
                self.held.pop(subject, None)
        found = self.around(call, lambda *changed: make(self, *changed))
        if name.startswith("open_"):
            with self._guard:
                self.held[found] = path
        return found


def _passing(name: str) -> Callable[..., Any]:
    make = getattr(Files, name)

    def passing(self: Seam, *arguments: Any) -> Any:
        return self._pass(name, make, arguments)

    return passing


for _name in PRIMITIVES:
    setattr(Seam, _name, _passing(_name))


class Stopped(BaseException):
    """Stands for whatever ends a program in the middle, as a signal does."""


class StopAfter(Seam):
    """Lets a number of tensor blocks be written and stops the merge at the next."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def around(self, call: Call, make: Callable[..., Any]) -> Any:
        """Stop the merge when it is time."""
        if is_block(call):
            with self._guard:
                self.left -= 1
                if self.left < 0:
                    raise Stopped
        return make(*call.arguments)


def is_block(call: Call) -> bool:
    """Whether a call writes a block of a tensor: behind a header, into a shard."""
    return call.name == "pwrite" and call.path.suffix == ".safetensors" and call.arguments[2] > 0


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are wanted, not paths
