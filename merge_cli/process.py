"""Settings of the running process: garbage collector, allocator, and how it ends."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import NoReturn

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector while millions of long-lived objects are made.

    Planning 100,000 tensors takes a third of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def pause_gc() -> None:
    """Stop the cyclic garbage collector until :func:`resume_gc`.

    Imports make objects that stay, torch's a million; looking for garbage among them takes a fifth of the start-up.
    """
    gc.disable()


def resume_gc() -> None:
    """Start the cyclic garbage collector; what exists already is exempt."""
    gc.freeze()
    gc.enable()


def exempt_from_gc() -> None:
    """Exempt everything that exists now from garbage collection, such as the million objects of a large plan."""
    gc.freeze()


@cache
def keep_large_buffers() -> bool:
    """Let glibc keep freed buffers of up to 256 MiB for reuse; return whether it is glibc that is in use.

    By default every allocation beyond a threshold is mapped and unmapped anew, and each of its pages is faulted in and
    cleared. Methods make temporaries of a block's size for every operation, so that costs several times the arithmetic:
    17 to 25 ns per element for gradient matching of three models, against 3.3 with the thresholds raised.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = mallopt(_M_MMAP_THRESHOLD, 256 * 2**20)
    trimmed = mallopt(_M_TRIM_THRESHOLD, 1024 * 2**20)
    return bool(mapped and trimmed)


def release_freed_memory() -> None:
    """Give the system back what was freed, which :func:`keep_large_buffers` keeps; for between two kinds of work."""
    if keep_large_buffers():
        ctypes.CDLL(None).malloc_trim(0)


def end_process(code: int | str | None, *, broken_pipe: int, write_error: int) -> NoReturn:
    """Flush the standard streams and end the process at once.

    Taking the interpreter apart object by object, torch's million among them, takes half a second and frees nothing
    that the system would not.

    Args:
        code: As for :class:`SystemExit`.
        broken_pipe: The exit code where nobody reads standard output any more and ``code`` is 0.
        write_error: The exit code where a stream cannot be written and ``code`` is 0.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or broken_pipe
        except OSError:
            code = code or write_error
    os._exit(code if isinstance(code, int) else int(code is not None))
