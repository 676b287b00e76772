"""Worker threads that take jobs from one queue; a finished job may put others before the rest.

Threads and not processes: torch, numpy and hashlib let go of Python's lock while they work. On two cores two threads
merge 1.6 times as fast as one (dare_ties), and two processes on half the work each no faster than that: memory bounds
both.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't start new thread")

W = TypeVar("W")
# A job gets its worker's own context and returns the jobs that it makes possible.
Job = Callable[[W], Iterable["Job[W]"]]


class Pool(Generic[W]):
    """Runs jobs on threads, each with a context of its own (buffers, counters).

    Args:
        contexts: One per thread.
    """

    def __init__(self, contexts: Iterable[W]) -> None:
        self._contexts = list(contexts)
        self._wake = threading.Condition()
        self._urgent: deque[Job[W]] = deque()
        self._coming: Iterator[Job[W]] = iter(())
        self._running = 0
        self._error: BaseException | None = None

    def run(self, jobs: Iterable[Job[W]]) -> None:
        """Run all jobs and what they bring; return when nothing is left, or raise the first error after all stopped.

        ``jobs`` is consumed as workers become free, so it may be long.
        """
        # A run that ended in an error has left jobs behind, and others that it never saw finished.
        self._coming, self._error, self._running = iter(jobs), None, 0
        self._urgent.clear()
        threads: list[threading.Thread] = []
        try:
            for context in self._contexts:
                thread = threading.Thread(target=self._work, args=(context,), daemon=True)
                thread.start()
                threads.append(thread)
            for thread in threads:
                # A join without a timeout cannot be interrupted by a signal on every platform.
                while thread.is_alive():
                    thread.join(0.2)
        except BaseException as error:
            self._stop(error)
            for thread in threads:
                thread.join()
            if isinstance(error, RuntimeError):
                raise as_memory_error(error) from None
            raise
        if self._error is not None:
            raise self._error

    def _work(self, context: W) -> None:
        # Each worker computes alone: blocks are small, and torch's own threads would only wait for each other.
        torch.set_num_threads(1)
        while (job := self._take()) is not None:
            try:
                following = list(job(context))
            except BaseException as error:
                self._stop(as_memory_error(error))
                return
            with self._wake:
                self._running -= 1
                self._urgent.extendleft(reversed(following))
                self._wake.notify_all()

    def _take(self) -> Job[W] | None:
        with self._wake:
            while self._error is None:
                job = self._urgent.popleft() if self._urgent else self._next()
                if job is not None:
                    self._running += 1
                    return job
                if not self._running:
                    self._wake.notify_all()
                    return None
                self._wake.wait()
            return None

    def _next(self) -> Job[W] | None:
        try:
            return next(self._coming, None)
        except BaseException as error:
            self._error = error
            return None

    def _stop(self, error: BaseException) -> None:
        with self._wake:
            if self._error is None:
                self._error = error
            self._urgent.clear()
            self._wake.notify_all()


def as_memory_error(error: BaseException) -> BaseException:
    """Return an error as a MemoryError if it is one: neither torch's CPU allocator nor threads have a type for it."""
    if isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY):
        memory_error = MemoryError(str(error))
        memory_error.__cause__ = error
        return memory_error
    return error
