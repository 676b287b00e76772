"""What a pool's workers do, whichever kind they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't start new thread")


class Context(Protocol):
    """What belongs to one worker."""

    def close(self) -> None:
        """Close what a forked process has opened for itself, at its end."""


@dataclass(frozen=True)
class Work:
    """Jobs, and what each worker does when none are left."""

    jobs: list[Callable[[Any], Any]]
    last: Callable[[Any], Any] | None


@dataclass(frozen=True)
class Last:
    """What a worker's last job returned."""

    value: Any


# What a worker tells: what the jobs of a batch returned, then what its last returned.
Message = list[Any] | Last
Messages = Generator[Message, None, None]


def messages(context: Any, work: Work, batches: Iterable[range]) -> Messages:
    """Do a worker's part of the work."""
    for batch in batches:
        yield [work.jobs[number](context) for number in batch]
    if work.last is not None:
        yield Last(work.last(context))


def as_memory_error(error: BaseException) -> BaseException:
    """Return an error as a MemoryError if it is one: neither torch's CPU allocator nor threads have a type for it."""
    torch = sys.modules.get("torch")
    if (torch is not None and isinstance(error, torch.OutOfMemoryError)) or any(
        sign in str(error) for sign in _OUT_OF_MEMORY
    ):
        memory_error = MemoryError(str(error))
        memory_error.__cause__ = error
        return memory_error
    return error


def set_torch_threads(count: int) -> int:
    """Have torch use so many threads of its own, if it is imported; return how many it used before."""
    torch = sys.modules.get("torch")
    if torch is None:
        return count
    before: int = torch.get_num_threads()
    torch.set_num_threads(count)
    return before
