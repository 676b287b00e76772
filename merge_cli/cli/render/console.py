"""Console output: tables, warnings and notes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from merge_cli.text import printable

_WIDE = 10_000
_COLOURS = {"warning": "yellow", "note": "cyan"}


class _Console(Console):
    """A console whose reader may go away, as ``head`` does."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; what goes into a pipe has no blanks at the ends of its lines."""
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def on_broken_pipe(self) -> None:
        """End the program as a shell says of one that nobody reads any more."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(128 + signal.SIGPIPE) from None


def new_console(*, to_stderr: bool = False) -> Console:
    """Return a console that does not wrap or colour what goes into a pipe."""
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    # Tables are cut to the width of the console, which is 80 in a pipe whatever reads it.
    width = None if terminal else _WIDE
    return _Console(stderr=to_stderr, highlight=False, soft_wrap=not terminal, width=width, emoji=False, markup=False)


def new_table(*headings: str) -> Table:
    """Return an empty table without lines; headings that are all empty are not shown."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def warnings(lines: Sequence[str]) -> None:
    """Print warnings to standard error."""
    _tell("warning", lines)


def notes(lines: Sequence[str]) -> None:
    """Print notes, on what is no fault, to standard error."""
    _tell("note", lines)


def _tell(kind: str, lines: Sequence[str]) -> None:
    for line in lines:
        typer.echo(f"{coloured(f'{kind}:', _COLOURS[kind])} {printable(line)}", err=True)


def coloured(text: str, colour: str) -> str:
    """Return a text for standard error in a colour where that is a terminal and colours are wanted."""
    plain = not sys.stderr.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else typer.style(text, fg=colour)
