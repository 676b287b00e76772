"""Workers that share a list of jobs: this thread, threads, or processes forked from this one.

Threads let go of Python's lock only while kernels, numpy, torch or hashlib work, in pieces of some ten microseconds,
and whatever lies between runs no faster on two cores than on one, but slower: the lock, and every object it guards,
moves from one core's cache to the other's. Measured on two cores, the best of four alternating runs of computing a 0.5B
merge of three fine-tunes, one thread, two, and two processes: linear 0.84, 0.56 and 0.49 s, dare_linear 1.75, 1.21 and
0.92, ties 3.2, 2.1 and 1.9; with torch's kernels, two threads and two processes, dare_linear 3.1 and 1.7, ties 4.4 and
3.5.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from merge_cli.stream.forking import in_processes
from merge_cli.stream.work import Context, Last, Message, Messages, Work, as_memory_error, messages, set_torch_threads

W = TypeVar("W", bound=Context)
T = TypeVar("T")
R = TypeVar("R")
Job = Callable[[W], T]


class Pool(Generic[W]):
    """Runs jobs on workers, each with a context of its own (buffers, counters).

    Args:
        contexts: One per worker; a single worker is the calling thread itself.
        processes: Whether workers are processes; what a job changes is then lost, but for what it returns.
    """

    def __init__(self, contexts: Sequence[W], *, processes: bool = False) -> None:
        self._contexts = contexts
        self._processes = processes

    def run(
        self, jobs: Iterable[Job[W, T]], take: Callable[[T], None], last: Callable[[W], R] | None = None
    ) -> list[R]:
        """Run all jobs, or raise the first error when all workers have stopped.

        Args:
            jobs: In the order in which they are begun.
            take: Is given what each job returns, in this thread, in any order.
            last: What each worker does when no jobs are left.

        Returns:
            What ``last`` returned on each worker.

        Raises:
            MemoryError: If memory runs out.
            ResourceError: If a worker process was killed.
        """
        work = Work(list(jobs), last)
        found: list[R] = []
        # Closed at once, also where taking a result fails: nothing is left running then.
        with contextlib.closing(self._started(work)) as told:
            for message in told:
                if isinstance(message, Last):
                    found.append(message.value)
                else:
                    for result in message:
                        take(result)
        return found

    def _started(self, work: Work) -> Messages:
        contexts = self._contexts[: max(1, len(work.jobs))]
        if len(contexts) == 1:
            return _in_this_thread(contexts[0], work)
        return in_processes(contexts, work) if self._processes else _in_threads(contexts, work)


def _each(numbers: Iterable[int]) -> Iterator[range]:
    return (range(number, number + 1) for number in numbers)


def _in_this_thread(context: Context, work: Work) -> Messages:
    # Blocks are small: torch's own threads would only wait for each other.
    before = set_torch_threads(1)
    try:
        yield from messages(context, work, _each(range(len(work.jobs))))
    except RuntimeError as error:
        raise as_memory_error(error) from None
    finally:
        set_torch_threads(before)


def _in_threads(contexts: Sequence[Context], work: Work) -> Messages:
    told: queue.Queue[Message | BaseException | None] = queue.Queue()
    # A list's iterator gives each number to one thread only.
    numbers, stopped = iter(list(range(len(work.jobs)))), threading.Event()

    def run(context: Context) -> None:
        set_torch_threads(1)
        try:
            for message in messages(context, work, _each(number for number in numbers if not stopped.is_set())):
                told.put(message)
        except BaseException as error:
            stopped.set()
            told.put(as_memory_error(error))
        finally:
            told.put(None)

    started: list[threading.Thread] = []
    try:
        for context in contexts:
            thread = threading.Thread(target=run, args=(context,), daemon=True)
            thread.start()
            started.append(thread)
        for _ in contexts:
            while (message := told.get()) is not None:
                if isinstance(message, BaseException):
                    raise message
                yield message
    except RuntimeError as error:
        raise as_memory_error(error) from None
    finally:
        stopped.set()
        for thread in started:
            thread.join()
