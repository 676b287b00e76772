"""Workers that share a list of jobs: this thread, threads, or processes forked from this one.

Threads let go of Python's lock only while torch, numpy or hashlib work, in pieces of some ten microseconds, and
whatever lies between runs no faster on two cores than on one, but slower: the lock, and every object it guards, moves
from one core's cache to the other's. Measured on two cores, the best of four alternating runs of merging a 0.5B model
and three fine-tunes, two threads against two processes: linear 0.80 s and 0.57 s, dare_linear 3.1 s and 1.7 s, ties
4.4 s and 3.5 s.

A forked process has everything that was there before it: the plan, open files, and the jobs, which are closures and
need not be sent. Only numbers of jobs and what the jobs return go through pipes.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

import torch

from merge_cli.errors import MergeError, ResourceError

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't start new thread")
# Numbers of this many batches fit into the smallest pipe that a system makes.
_MOST_BATCHES = 1024
_NUMBER = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1


class Context(Protocol):
    """What belongs to one worker."""

    def close(self) -> None:
        """Close what a forked process has opened for itself, at its end."""


W = TypeVar("W", bound=Context)
T = TypeVar("T")
R = TypeVar("R")
Job = Callable[[W], T]


def can_fork() -> bool:
    """Whether workers may be processes: elsewhere than on Linux, libraries do not survive a fork."""
    return sys.platform == "linux"


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
        work = _Work(list(jobs), last)
        found: list[R] = []
        workers = self._contexts[: max(1, len(work.jobs))]
        if len(workers) == 1:
            messages = _alone(workers[0], work)
        elif self._processes:
            messages = _in_processes(workers, work)
        else:
            messages = _in_threads(workers, work)
        # Closed at once, also where taking a result fails: nothing is left running then.
        with contextlib.closing(messages):
            for message in messages:
                if isinstance(message, _Last):
                    found.append(message.value)
                else:
                    for result in message:
                        take(result)
        return found


@dataclass(frozen=True)
class _Work:
    jobs: list[Callable[[Any], Any]]
    last: Callable[[Any], Any] | None


@dataclass(frozen=True)
class _Last:
    value: Any


@dataclass(frozen=True)
class _Failure:
    error: BaseException
    cause: BaseException | None


_Message = list[Any] | _Last
_Messages = Iterator[_Message]


def _messages(context: Any, work: _Work, batches: Iterable[range]) -> Iterator[_Message]:
    """Do a worker's work: a list of results per batch, then what is last."""
    for batch in batches:
        yield [work.jobs[number](context) for number in batch]
    if work.last is not None:
        yield _Last(work.last(context))


def _alone(context: Any, work: _Work) -> Any:
    before = torch.get_num_threads()
    # Blocks are small: torch's own threads would only wait for each other.
    torch.set_num_threads(1)
    try:
        yield from _messages(context, work, (range(number, number + 1) for number in range(len(work.jobs))))
    except RuntimeError as error:
        raise as_memory_error(error) from None
    finally:
        torch.set_num_threads(before)


def _in_threads(contexts: Sequence[Any], work: _Work) -> Any:
    results: queue.SimpleQueue[_Message | BaseException | None] = queue.SimpleQueue()
    # A list's iterator gives each number to one thread, and a set event ends it for all.
    numbers, stopped = iter(list(range(len(work.jobs)))), threading.Event()

    def batches() -> Iterator[range]:
        for number in numbers:
            if stopped.is_set():
                return
            yield range(number, number + 1)

    def run(context: Any) -> None:
        torch.set_num_threads(1)
        try:
            for message in _messages(context, work, batches()):
                results.put(message)
        except BaseException as error:
            stopped.set()
            results.put(as_memory_error(error))
        finally:
            results.put(None)

    threads = [threading.Thread(target=run, args=(context,), daemon=True) for context in contexts]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        for _ in threads:
            while (message := results.get()) is not None:
                if isinstance(message, BaseException):
                    raise message
                yield message
    except RuntimeError as error:
        raise as_memory_error(error) from None
    finally:
        stopped.set()
        for thread in started:
            thread.join()


def _in_processes(contexts: Sequence[Any], work: _Work) -> Any:
    fork = multiprocessing.get_context("fork")
    size = -(-len(work.jobs) // _MOST_BATCHES)
    batches = [range(start, min(start + size, len(work.jobs))) for start in range(0, len(work.jobs), size)]
    tickets = _tickets(len(batches))
    running: dict[Connection[Any, Any], BaseProcess] = {}
    try:
        for context in contexts:
            receiver, sender = fork.Pipe(duplex=False)
            arguments = (os.getpid(), context, work, batches, tickets, sender)
            process: BaseProcess = fork.Process(target=_run_in_child, args=arguments)
            with sender, warnings.catch_warnings():
                # What other threads of this process do at this moment, a child has no part in.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            running[receiver] = process
        while running:
            for receiver in [each for each in running if each in wait(running)]:
                message = _received(receiver, running[receiver])
                if message is None:
                    running.pop(receiver).join()
                    receiver.close()
                else:
                    yield message
    finally:
        os.close(tickets)
        for receiver, process in running.items():
            process.kill()
            process.join()
            receiver.close()


def _tickets(count: int) -> int:
    """Return a pipe from which every worker takes the number of its next batch."""
    reading, writing = os.pipe()
    os.write(writing, b"".join(map(_NUMBER.pack, range(count))))
    os.close(writing)
    return reading


def _received(receiver: Connection[Any, Any], process: BaseProcess) -> _Message | None:
    try:
        message = pickle.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        raise ResourceError(
            f"a worker process ended without a word, with exit status {process.exitcode}",
            hint="the system kills processes when memory runs out; try fewer --threads, or less --memory",
        ) from None
    if isinstance(message, _Failure):
        raise message.error from message.cause
    return message  # type: ignore[no-any-return]


def _run_in_child(
    parent: int, context: Any, work: _Work, batches: list[range], tickets: int, sender: Connection[Any, Any]
) -> None:
    # The parent hears of a signal and ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with(parent)
    torch.set_num_threads(1)
    numbers = iter(lambda: os.read(tickets, _NUMBER.size), b"")
    try:
        for message in _messages(context, work, (batches[_NUMBER.unpack(number)[0]] for number in numbers)):
            _send(sender, message)
        context.close()
        _send(sender, None)
    except BaseException as error:
        _send(sender, _failure(error))


def _send(sender: Connection[Any, Any], message: _Message | _Failure | None) -> None:
    # Sent in their own way, tensors would stay in memory that this process must live on to share.
    sender.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _failure(error: BaseException) -> _Failure:
    """Return an error as it can be sent: its cause is not part of it, and a bug's place would be lost."""
    if not isinstance(error, (MergeError, MemoryError)):
        error.add_note("in a worker process:\n" + traceback.format_exc())
    return _Failure(as_memory_error(error), error.__cause__)


def _end_with(parent: int) -> None:
    """Have the system kill this process when the one that forked it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def as_memory_error(error: BaseException) -> BaseException:
    """Return an error as a MemoryError if it is one: neither torch's CPU allocator nor threads have a type for it."""
    if isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY):
        memory_error = MemoryError(str(error))
        memory_error.__cause__ = error
        return memory_error
    return error
