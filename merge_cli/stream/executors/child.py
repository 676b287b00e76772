"""A worker process: it takes jobs from a pipe that it shares, and sends what they return through its own."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from merge_cli.errors import MergeError
from merge_cli.stream.executors.loop import W, as_memory_error, set_torch_threads

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NO_MORE_JOBS = b""
_PR_SET_PDEATHSIG = 1

Pipe: TypeAlias = "Connection[Any, Any]"


@dataclass(frozen=True)
class Ended:
    """A worker's last message."""


@dataclass(frozen=True)
class Failure:
    """An error, and its cause, which pickle would leave out."""

    error: BaseException
    cause: BaseException | None


def serve(
    parent: int,
    make_worker: Callable[[], W],
    run: Callable[[Any, W], object],
    jobs: Pipe,
    turn: Pipe,
    free: Pipe,
    sender: Pipe,
) -> None:
    """Run jobs until there are no more, then end this process.

    Args:
        parent: The process that started this one.
        make_worker: Returns the worker.
        run: Runs a job on it.
        jobs: Gives pickled jobs to all workers of a parent.
        turn: Gives a byte to the one that may read a job.
        free: Takes it back.
        sender: Takes what jobs return, or a :class:`Failure`; at last :class:`Ended`.
    """
    # The parent hears of a signal and ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _end_with(parent)
    try:
        worker = make_worker()
        set_torch_threads(1)
        while message := _next_job(jobs, turn, free):
            job = pickle.loads(message)
            sender.send_bytes(pickled(job if isinstance(job, Failure) else run(job, worker)))
        worker.close()
        sender.send_bytes(pickled(Ended()))
    except BaseException as error:
        sender.send_bytes(pickled(failure_of(error)))
    # What an interpreter does at its end may wait for a lock that another thread held at the fork.
    os._exit(0)


def _next_job(jobs: Pipe, turn: Pipe, free: Pipe) -> bytes:
    os.read(turn.fileno(), 1)
    try:
        return jobs.recv_bytes()
    finally:
        os.write(free.fileno(), b".")


def pickled(message: object) -> bytes:
    """Return something as it is sent."""
    # Sent in their own way, tensors would stay in memory that this process must live on to share.
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def failure_of(error: BaseException) -> Failure:
    """Return an error as it can be sent: its cause is not part of it, and a bug's place would be lost."""
    if not isinstance(error, (MergeError, MemoryError)):
        error.add_note("in a worker process:\n" + traceback.format_exc())
    error = as_memory_error(error)
    failure = Failure(error, error.__cause__)
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        # Whoever wrote this error did not think of sending it.
        return Failure(RuntimeError("".join(traceback.format_exception(error))), None)
    return failure


def _end_with(parent: int) -> None:
    """Have the system kill this process when the one that started it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
