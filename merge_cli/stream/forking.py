"""Workers that are forked from this process.

A forked process has everything that was there before it: the plan, open files, and the jobs, which are closures and
need not be sent. Only numbers of jobs and what the jobs return go through pipes.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from merge_cli.errors import MergeError, ResourceError
from merge_cli.stream.work import Context, Message, Messages, Work, as_memory_error, messages, set_torch_threads

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Numbers of this many batches fit into the smallest pipe that a system makes.
_MOST_BATCHES = 1024
_NUMBER = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class _Failure:
    error: BaseException
    cause: BaseException | None


def can_fork() -> bool:
    """Whether workers may be processes: elsewhere than on Linux, libraries do not survive a fork."""
    return sys.platform == "linux"


def in_processes(contexts: Sequence[Context], work: Work) -> Messages:
    """Have a process for each context do its part; none is left when this generator ends or is closed.

    Raises:
        ResourceError: If a process cannot be started, or was killed.
        BaseException: What a job has raised.
    """
    fork = multiprocessing.get_context("fork")
    size = -(-len(work.jobs) // _MOST_BATCHES)
    batches = [range(start, min(start + size, len(work.jobs))) for start in range(0, len(work.jobs), size)]
    tickets = _tickets(len(batches))
    running: dict[Connection[Any, Any], BaseProcess] = {}
    try:
        for context in contexts:
            receiver, sender = fork.Pipe(duplex=False)
            arguments = (os.getpid(), context, work, batches, tickets, sender)
            process: BaseProcess = fork.Process(target=_run, args=arguments)
            with sender, _signals_later():
                _start(process)
                running[receiver] = process
        while running:
            ready = wait(running)
            for receiver in [each for each in running if each in ready]:
                message = _received(receiver, running[receiver])
                if message is not None:
                    yield message
                    continue
                running.pop(receiver).join()
                receiver.close()
    finally:
        os.close(tickets)
        for receiver, process in running.items():
            process.kill()
            process.join()
            receiver.close()


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Answer signals that end the program at the end of this context.

    What libraries do about a fork runs where an error is printed and forgotten, an interrupt with it, and a child would
    answer a signal as its parent does.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals are answered in the main thread.
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
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


def _tickets(count: int) -> int:
    """Return a pipe from which every worker takes the number of its next batch."""
    reading, writing = os.pipe()
    os.write(writing, b"".join(map(_NUMBER.pack, range(count))))
    os.close(writing)
    return reading


def _received(receiver: Connection[Any, Any], process: BaseProcess) -> Message | None:
    try:
        message: Message | _Failure | None = pickle.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        raise ResourceError(
            f"a worker process was killed, it ended with exit status {process.exitcode}",
            hint="the system kills processes when memory runs out; try fewer --threads, or less --memory",
        ) from None
    if isinstance(message, _Failure):
        raise message.error from message.cause
    return message


def _run(
    parent: int, context: Context, work: Work, batches: list[range], tickets: int, sender: Connection[Any, Any]
) -> None:
    # The parent hears of a signal and ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with(parent)
    set_torch_threads(1)
    numbers = iter(lambda: os.read(tickets, _NUMBER.size), b"")
    try:
        for message in messages(context, work, (batches[_NUMBER.unpack(number)[0]] for number in numbers)):
            _send(sender, message)
        context.close()
        _send(sender, None)
    except BaseException as error:
        _send(sender, _failure(error))
    # What an interpreter does at its end may wait for a lock that another thread held at the fork.
    os._exit(0)


def _send(sender: Connection[Any, Any], message: Message | _Failure | None) -> None:
    # Sent in their own way, tensors would stay in memory that this process must live on to share.
    sender.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _failure(error: BaseException) -> _Failure:
    """Return an error as it can be sent: its cause is not part of it, and a bug's place would be lost."""
    if not isinstance(error, (MergeError, MemoryError)):
        error.add_note("in a worker process:\n" + traceback.format_exc())
    error = as_memory_error(error)
    failure = _Failure(error, error.__cause__)
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        # Whoever wrote this error did not think of sending it.
        return _Failure(RuntimeError("".join(traceback.format_exception(error))), None)
    return failure


def _end_with(parent: int) -> None:
    """Have the system kill this process when the one that forked it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
