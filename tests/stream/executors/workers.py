"""Workers and jobs for executors: jobs are integers. Imports no torch, so that a fresh interpreter starts quickly."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from merge_cli.errors import CheckpointError, ResourceError
from merge_cli.stream.executors import Executor, Inline, Processes, Threads

FAILS, KILLED = -1, -2
LARGE = 2**26


@dataclass
class Worker:
    """Remembers the numbers that it was given."""

    seen: list[int] = field(default_factory=list)

    def close(self) -> None:
        pass


@dataclass
class FullDisk(Worker):
    """Cannot keep what it has written."""

    def close(self) -> None:
        raise ResourceError("cannot close")


class Unsendable(Exception):
    """Takes two arguments and says so to nobody."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


class Starting:
    """Makes a worker that tells whether interrupts were blocked when its process read what it is made from."""

    def __reduce__(self) -> tuple[Callable[[], Callable[[], Worker]], tuple[()]]:
        return noted, ()


def noted() -> Callable[[], Worker]:
    """Return what a :class:`Starting` is at the other end."""
    return partial(Worker, [int(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))])


def first_seen(number: int, worker: Worker) -> int:
    """Return the first number that the worker has seen."""
    return worker.seen[0]


class Unpicklable:
    """A job that cannot be sent."""

    def __reduce__(self) -> str:
        raise LookupError("not to be sent")


def square(number: int, worker: Worker) -> int:
    """Return the square; negative numbers end badly."""
    worker.seen.append(number)
    if number == FAILS:
        raise ValueError("no")
    if number == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def pid(number: int, worker: Worker) -> int:
    """Return the number of the process that it is done in, slowly, so that others come to do some."""
    time.sleep(0.01)
    return os.getpid()


def meet(folder: Path) -> Callable[[int, Worker], bool]:
    """Return jobs that end when job 0 and job 1 are both under way."""

    def run(number: int, worker: Worker) -> bool:
        (folder / str(number)).touch()
        deadline = time.monotonic() + 30
        while not (folder / str(1 - number)).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        return (folder / str(1 - number)).exists()

    return run


def slow(number: int, worker: Worker) -> int:
    """Take a millisecond."""
    time.sleep(0.001)
    return square(number, worker)


def explained(number: int, worker: Worker) -> int:
    """Raise an error with all that an error may have."""
    try:
        raise OSError(errno.EIO, "gone")
    except OSError as cause:
        error = CheckpointError("cannot read", hint="try again")
        error.add_note("a note")
        raise error from cause


def out_of_memory(number: int, worker: Worker) -> int:
    """Fail as torch does when memory runs out."""
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def unsendable(number: int, worker: Worker) -> int:
    """Raise what does not pickle."""
    raise Unsendable("this", "that")


def large_and_killed(number: int, worker: Worker) -> bytes:
    """Return more than a pipe holds, and be killed while it is sent to somebody who takes nothing for a second."""
    if number != KILLED:
        return b"1"
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    return bytes(LARGE)


def double(number: int, worker: Worker) -> bytes:
    """Return as many bytes as it is given."""
    return bytes(number)


MAKERS: dict[str, Callable[[Callable[[], Worker], Callable[[int, Worker], object]], Executor[int, object]]] = {
    "inline": Inline,
    "2 threads": lambda make, run: Threads(make, run, 2),
    "7 threads": lambda make, run: Threads(make, run, 7),
    "2 forked": lambda make, run: Processes(make, run, 2, method="fork"),
    "7 forked": lambda make, run: Processes(make, run, 7, method="fork"),
    "2 spawned": lambda make, run: Processes(make, run, 2, method="spawn"),
}
