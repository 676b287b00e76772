"""Progress on a terminal: what is being done, how much of it, how fast, and how long it will take."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from merge_cli.stream.progress import Listener, Quiet


@contextlib.contextmanager
def showing(*, visible: bool) -> Iterator[Listener]:
    """Yield a listener that draws on standard error where that is a terminal, else one that says nothing."""
    if not visible or not sys.stderr.isatty():
        yield Quiet()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[tensor]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)


@contextlib.contextmanager
def counting(what: str, *, visible: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function that is told how many of how many examples are done, and draws that on a terminal."""
    if not visible or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


class _Bars:
    """Draws one bar per phase; rich's own lock makes it safe to call from threads."""

    def __init__(self, bars: object) -> None:
        from rich.progress import Progress

        assert isinstance(bars, Progress)
        self._bars = bars
        self._current: int | None = None

    def phase(self, name: str, nbytes: int) -> None:
        if self._current is not None:
            self._bars.remove_task(self._bars.task_ids[0])
        self._current = self._bars.add_task(name, total=nbytes, tensor="")

    def advance(self, tensor: str, nbytes: int) -> None:
        if self._current is not None:
            self._bars.update(self._bars.task_ids[0], advance=nbytes, tensor=tensor)
