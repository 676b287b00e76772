"""The tables of the demonstration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    # Imports transformers' half of the project, which other commands do without.
    from merge_cli.demo import DemoReport

from merge_cli.cli.render.console import new_console, new_table
from merge_cli.text import format_seconds


def demo(report: DemoReport) -> None:
    """Print the demonstration's tables and what they say."""
    for each in report.tables:
        new_console().print(f"\n{each.title}\n")
        table = new_table(*each.headings)
        for row in each.rows:
            table.add_row(*row)
        new_console().print(table)
    typer.echo("")
    for note in report.notes:
        typer.echo(f"- {note}")
    typer.echo(f"\n{report.folder}: checkpoints, Fishers, recipes, texts; {format_seconds(report.seconds)}")
