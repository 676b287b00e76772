"""Progress display: phase, share done, speed and time left."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from merge_cli.stream.progress import Listener, NullListener
from merge_cli.text import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, Task

Amount = Callable[[float], str]

# Auto: a bar on terminals and lines elsewhere. Plain: lines. None: nothing.
PROGRESS = "MERGE_CLI_PROGRESS"
_EVERY_SECONDS = 30
_NAME, _SMALLEST_BAR, _LARGEST_BAR = 15, 4, 14
# What is in a row besides the bar, with the gaps; below the second width there is no room for a tensor's name.
_BESIDE_BAR, _WITH_TENSOR = 65, 110


@contextlib.contextmanager
def byte_progress(*, visible: bool) -> Iterator[Listener]:
    """Yield a listener that draws a row on a terminal, writes a line now and then elsewhere, or says nothing."""
    with _told(format_bytes, visible=visible) as listener:
        yield listener


@contextlib.contextmanager
def example_progress(what: str, *, visible: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function that shows how many examples are done, as :func:`byte_progress` does."""
    with _told(_count, visible=visible) as listener:
        so_far, begun = 0, False

        def update(done: int, total: int | None) -> None:
            nonlocal so_far, begun
            if not begun:
                listener.phase(what, total or 0)
                begun = True
            listener.advance("", done - so_far)
            so_far = done

        yield update


@contextlib.contextmanager
def _told(amount: Amount, *, visible: bool) -> Iterator[Listener]:
    wanted = os.environ.get(PROGRESS, "auto")
    if not visible or wanted == "none":
        yield NullListener()
    elif wanted == "plain" or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Lines(amount, lambda line: print(line, file=sys.stderr, flush=True))
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        bar = max(_SMALLEST_BAR, min(_LARGEST_BAR, console.width - _BESIDE_BAR))
        columns = [TextColumn("{task.fields[name]}", style="", markup=False), BarColumn(bar_width=bar)]
        columns.append(TextColumn("{task.fields[row]}", style="", markup=False))
        with Progress(*columns, console=console, transient=True) as bars:
            yield _Bars(bars, amount)


class Lines:
    """Writes a plain line every half minute, the first after half a minute: short work stays silent.

    Args:
        amount: How to write an amount of what is done.
        tell: What is given each line.
        clock: Seconds that have passed since some moment.
    """

    def __init__(
        self, amount: Amount, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._amount, self._tell, self._clock = amount, tell, clock
        self._name, self._total, self._done = "", 0, 0
        self._began = clock()
        self._due = self._began + _EVERY_SECONDS
        self._lock = threading.Lock()

    def phase(self, name: str, nbytes: int) -> None:
        """Begin a phase of the work."""
        with self._lock:
            self._name, self._total, self._done, self._began = name, nbytes, 0, self._clock()

    def advance(self, tensor: str, nbytes: int) -> None:
        """Count that so much more was done."""
        with self._lock:
            self._done += nbytes
            now = self._clock()
            if now < self._due:
                return
            self._due = now + _EVERY_SECONDS
            self._tell(self._line(now - self._began))

    def _line(self, seconds: float) -> str:
        parts = [f"{self._name}: {self._amount(self._done)}"]
        if self._total:
            parts[0] += f" of {self._amount(self._total)} ({100 * self._done // self._total} %)"
        rate = self._done / seconds if seconds else 0.0
        if rate:
            parts.append(f"{self._amount(rate)}/s")
        if rate and self._total > self._done:
            parts.append(f"about {format_seconds((self._total - self._done) / rate)} left")
        return ", ".join(parts)


class _Bars:
    """Draws one row for the phase at work; rich's own lock makes it safe to call from threads."""

    def __init__(self, bars: Progress, amount: Amount) -> None:
        self._bars, self._amount = bars, amount
        self._begun = False

    def phase(self, name: str, nbytes: int) -> None:
        if self._begun:
            self._bars.remove_task(self._bars.task_ids[0])
        self._begun = True
        self._bars.add_task("", total=nbytes or None, name=f"{name:{_NAME}}"[:_NAME], row="")

    def advance(self, tensor: str, nbytes: int) -> None:
        if self._begun:
            self._bars.update(self._bars.task_ids[0], advance=nbytes)
            task, width = self._bars.tasks[0], self._bars.console.width
            row = row_of(task, self._amount)
            room = width - _BESIDE_BAR - _LARGEST_BAR if width >= _WITH_TENSOR else 0
            self._bars.update(task.id, row=f"{row}  {tensor}"[: len(row) + room])


def row_of(task: Task, amount: Amount) -> str:
    """Write how much of a phase is done, how fast, and how long it will take, in columns of fixed width."""
    share = f"{min(task.percentage, 100):3.0f}%" if task.total else "    "
    total = f" of {amount(task.total):>8}" if task.total else " " * 12
    rate = f"{amount(task.speed)}/s" if task.speed else ""
    left = task.time_remaining
    minutes, seconds = divmod(round(left), 60) if left is not None else (0, 0)
    clock = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if left is not None else "-:--:--"
    return f"{share}  {amount(task.completed):>8}{total}  {rate:>10}  {clock:>7}"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"
