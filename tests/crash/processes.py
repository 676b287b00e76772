"""Merges in processes of their own, which die when they are told to.

A fork starts in milliseconds where a fresh interpreter takes seconds to import torch; nothing of the merge exists
before the fork, so that what is killed is the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.seam import Call, Seam

_PR_SET_CHILD_SUBREAPER = 36


class KillAt(Seam):
    """Ends the program with SIGKILL just before, or just after, a call.

    A worker process counts on from where it was forked; at the call it is the program that is killed, and the system
    that then ends the worker.
    """

    def __init__(self, number: int | None, *, after: bool = False, pause: float = 0.0, exchanges: bool = True) -> None:
        super().__init__()
        self.number, self.after, self.pause, self.exchanges = number, after, pause, exchanges
        self.program: int | None = None

    def around(self, call: Call, make: Callable[..., Any]) -> Any:
        """Make the call, if this process lives to make it."""
        self.program = self.program or os.getpid()
        if self.pause:
            time.sleep(self.pause)
        if call.number == self.number and not self.after:
            _die_with(self.program)
        impossible = call.name == "swap_names" and not self.exchanges
        found = False if impossible else make(*call.arguments)
        if call.number == self.number:
            _die_with(self.program)
        return found


def _die_with(program: int) -> None:
    os.kill(program, signal.SIGKILL)
    time.sleep(60)
    raise AssertionError("alive")


@dataclass(frozen=True)
class Ended:
    """How a process ended: with an exit code, or killed."""

    code: int | None
    said: str

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.code is None


def forked(work: Callable[[], int], said: Path, *, kill_after: float | None = None) -> Ended:
    """Run something in a fork and return how that ended; what it says goes to a file."""
    # Workers of a program that is killed become children of this process, which waits for their end too.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # It may be killed before it says anything.
    said.write_bytes(b"")
    pid = os.fork()
    if not pid:
        _become(work, said)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    assert code is not None or os.WTERMSIG(status) == signal.SIGKILL, said.read_text()
    return Ended(code, said.read_text())


def _become(work: Callable[[], int], said: Path) -> None:
    code = 70
    try:
        fd = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command_line(folder: Path, arguments: Sequence[str], files: Seam) -> Callable[[], int]:
    """Return what runs ``merge-cli`` with some arguments in a folder, over these system calls."""

    def work() -> int:
        import merge_cli.run
        from merge_cli.cli import main

        os.chdir(folder)
        # The seam, where the program itself makes one.
        vars(merge_cli.run)["Files"] = lambda: files
        sys.argv = ["merge-cli", *arguments]
        try:
            main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return 0

    return work
