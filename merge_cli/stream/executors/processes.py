"""The executor whose workers are processes, forked or started afresh.

On Linux they are forked: a fork takes milliseconds, and the worker has what was there before. The environment variable
``MERGE_CLI_START_METHOD=spawn`` starts fresh interpreters instead, on other systems too, where workers are threads
otherwise. A fresh interpreter takes a third of a second, and whatever a worker is made from must pickle.

Why not :class:`concurrent.futures.ProcessPoolExecutor`: its workers send their results through one pipe, and the end of
a worker is noticed only between two results. One that is killed in the middle of a large result, as happens when memory
runs out, leaves the pool waiting for the rest forever (seen with Python 3.11), and killing workers is the only way to
stop them in the middle of a job. Here each has a pipe of its own for results, whose end says that the worker has gone.
The pool also tells neither how a worker ended nor what it raised when it closed its files, and a message costs it 130
microseconds of all cores together, here 16.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic

from merge_cli.errors import ResourceError
from merge_cli.stream.executors.child import NO_MORE_JOBS, SIGNALS, Ended, Failure, Pipe, failure_of, pickled, serve
from merge_cli.stream.executors.loop import Executor, J, R, W

START_METHOD_VARIABLE = "MERGE_CLI_START_METHOD"
# With the third, forkserver, a worker would be the child of another process and outlive this one.
_METHODS = ("fork", "spawn")


def start_method() -> str | None:
    """Return how worker processes are started; None where workers had better be threads.

    Elsewhere than on Linux libraries do not survive a fork, and fresh interpreters have to be asked for.

    Raises:
        ResourceError: If the environment names a method that this system does not have.
    """
    known = [method for method in _METHODS if method in multiprocessing.get_all_start_methods()]
    wanted = os.environ.get(START_METHOD_VARIABLE) or ("fork" if sys.platform == "linux" else None)
    if wanted is not None and wanted not in known:
        raise ResourceError(
            f"{START_METHOD_VARIABLE} is '{wanted}', expected {' or '.join(known)}",
            hint="without it, this system has its own choice",
        )
    return wanted


class Processes(Executor[J, R], Generic[J, R, W]):
    """Runs jobs in processes, which start with the first jobs and stay until the end.

    Args:
        make_worker: Returns a worker, in its process; must pickle unless processes are forked.
        run: Runs a job on a worker; must pickle too.
        count: How many workers.
        method: How processes are started, one of multiprocessing's methods.
    """

    def __init__(
        self, make_worker: Callable[[], W], run: Callable[[J, W], R], count: int, *, method: str = "fork"
    ) -> None:
        self._make_worker, self._run, self._count = make_worker, run, count
        self._context = multiprocessing.get_context(method)
        self._running: dict[Pipe, BaseProcess] = {}
        self._jobs: Pipe | None = None
        self._feeder: threading.Thread | None = None

    def map(self, jobs: Iterable[J]) -> Generator[R, None, None]:
        """Yield what each job returns, in the order in which they end."""
        listed = list(jobs)
        left = len(listed)
        try:
            if left and not self._running:
                self._start()
            if left:
                self._feed(_messages(listed))
            while left:
                for result in self._received():
                    left -= 1
                    yield result
        except BaseException:
            self.stop()
            raise

    def close(self) -> None:
        """Let workers close what they have opened, and end."""
        try:
            if self._running:
                self._feed([NO_MORE_JOBS] * len(self._running))
            while self._running:
                for _ in self._received():
                    pass
        finally:
            self.stop()

    def stop(self) -> None:
        """End all workers at once."""
        for process in self._running.values():
            process.kill()
        while self._running:
            self._forget(next(iter(self._running)))
        if self._feeder is not None:
            self._feeder.join()
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None

    def _feed(self, messages: Iterable[bytes]) -> None:
        """Begin to send messages, in a thread, because a full pipe must not keep this one from taking results."""
        if self._feeder is not None:
            self._feeder.join()
        self._feeder = threading.Thread(target=_send, args=(self._jobs, messages), daemon=True)
        self._feeder.start()

    def _start(self) -> None:
        if self._context.get_start_method() == "spawn":
            # Starting with the first worker, it would let through the signals that are to be answered later.
            resource_tracker.ensure_running()
        jobs, self._jobs = self._context.Pipe(duplex=False)
        # Whoever holds the only byte of a pipe is the one who reads a job: a lock that needs no shared memory.
        turn, free = self._context.Pipe(duplex=False)
        with jobs, turn, free:
            os.write(free.fileno(), b".")
            for _ in range(self._count):
                receiver, sender = self._context.Pipe(duplex=False)
                arguments = (os.getpid(), self._make_worker, self._run, jobs, turn, free, sender)
                process: BaseProcess = self._context.Process(target=serve, args=arguments)  # type: ignore[attr-defined]
                with sender, _signals_later():
                    _start(process)
                    self._running[receiver] = process

    def _received(self) -> Iterator[Any]:
        """Yield what workers have sent, one message of each that has; those that have ended are forgotten."""
        for receiver in wait(list(self._running)):
            assert isinstance(receiver, Connection)
            message = _receive(receiver, self._running[receiver])
            if isinstance(message, Ended):
                self._forget(receiver)
            else:
                yield message

    def _forget(self, receiver: Pipe) -> None:
        self._running.pop(receiver).join()
        receiver.close()


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Answer signals that end the program at the end of this context.

    What libraries do about a fork runs where an error is printed and forgotten, an interrupt with it, and a child would
    answer a signal as its parent does until it has its own answers.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals are answered in the main thread.
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, answer in before.items():
            signal.signal(number, answer if answer is not None else signal.SIG_DFL)
        for each in came:
            signal.raise_signal(each)


def _start(process: BaseProcess) -> None:
    with warnings.catch_warnings():
        # What other threads of this process do at this moment, a child has no part in.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            process.start()
        except OSError as error:
            raise ResourceError(
                f"cannot start a worker process: {error.strerror}", hint="--threads 1 works without any"
            ) from error


def _messages(jobs: Iterable[object]) -> Iterator[bytes]:
    """Yield jobs as they are sent; one that cannot be sent is a failure for a worker to send back."""
    for job in jobs:
        try:
            yield pickled(job)
        except Exception as error:
            yield pickled(failure_of(error))


def _send(pipe: Pipe, messages: Iterable[bytes]) -> None:
    # Broken when all workers are gone, which is noticed where their results are received.
    with contextlib.suppress(BrokenPipeError):
        for message in messages:
            pipe.send_bytes(message)


def _receive(receiver: Pipe, process: BaseProcess) -> object:
    try:
        message: object = pickle.loads(receiver.recv_bytes())
    except (EOFError, OSError):
        # In the middle of a message an end of file has no type of its own.
        process.join()
        raise ResourceError(
            f"a worker process was killed, it ended with exit status {process.exitcode}",
            hint="the system kills processes when memory runs out; try fewer --threads, or less --memory",
        ) from None
    if isinstance(message, Failure):
        raise message.error from message.cause
    return message
