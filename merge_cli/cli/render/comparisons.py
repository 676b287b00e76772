"""How merges compare: in gradient mismatch, and in the demonstration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from merge_cli.cli.render.console import new_console, new_table
from merge_cli.report import MismatchReport
from merge_cli.units import format_seconds

if TYPE_CHECKING:
    # Imports transformers' half of the project, which other commands do without.
    from merge_cli.demo import DemoReport


def mismatch(found: MismatchReport, *, as_json: bool) -> None:
    """Print a forecast of gradient mismatch."""
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    table = new_table("layer", *(scheme.replace("_", " ") for scheme in found.total))
    for layer, numbers in found.layers.items():
        table.add_row(layer, *(f"{number:.4g}" for number in numbers.values()))
    table.add_row("total", *(f"{number:.4g}" for number in found.total.values()))
    new_console().print(table)
    if found.measured:
        measured = new_table("measured on data", *(scheme.replace("_", " ") for scheme in found.total))
        for what, values in found.measured.items():
            measured.add_row(what, *("-" if number is None else f"{number:.4g}" for number in values.values()))
        new_console().print(measured)


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
