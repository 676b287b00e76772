"""The interface of executors, and what they share: one thread for torch, one type for errors about memory."""

from __future__ import annotations

import abc
import contextlib
import sys
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

J = TypeVar("J")
R = TypeVar("R")

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't start new thread")


class Closable(Protocol):
    """A worker: its buffers, its open files."""

    def close(self) -> None:
        """Close what a worker in a process of its own has opened, when no more jobs come."""


W = TypeVar("W", bound=Closable)


class Executor(abc.ABC, Generic[J, R]):
    """Runs jobs on workers. Use it as a context: no worker is left after it."""

    @abc.abstractmethod
    def map(self, jobs: Iterable[J]) -> Generator[R, None, None]:
        """Yield what each job returns, in any order; the first jobs begin first. It may be called again.

        A job's error is raised with its own type when every worker has stopped. So does closing the generator early
        stop every worker.

        Args:
            jobs: Any data that ``run`` takes; must pickle where workers are processes.

        Raises:
            MemoryError: If memory runs out.
            ResourceError: If a worker process cannot be started, or was killed.
        """

    def close(self) -> None:
        """Let workers in other processes close what they have opened, and end; an error of that is raised."""

    def stop(self) -> None:
        """End workers in other processes at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.stop()


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


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise what means that memory has run out as a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        found = as_memory_error(error)
        if found is error:
            raise
        raise found from error


def set_torch_threads(count: int) -> int:
    """Have torch use so many threads of its own, if it is imported; return how many it used before."""
    torch = sys.modules.get("torch")
    if torch is None:
        return count
    before: int = torch.get_num_threads()
    torch.set_num_threads(count)
    return before
