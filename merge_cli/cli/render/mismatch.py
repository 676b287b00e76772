"""Tables of gradient mismatch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from merge_cli.cli.render.console import new_console, new_table
from merge_cli.cli.results import print_json
from merge_cli.report import MismatchReport
from merge_cli.report.mismatch import SCHEMES, title_of
from merge_cli.text import printable

if TYPE_CHECKING:
    # Imports transformers' half of the project, which other commands do without.
    pass

_UNITS = {
    "loss increase": "loss increase, nats",
    "fidelity": "fidelity: that over its forecast, 1 is good",
}


def mismatch(found: MismatchReport, *, as_json: bool) -> None:
    """Print a forecast of gradient mismatch."""
    if as_json:
        print_json(found.to_json())
        return
    console = new_console()
    table = new_table("gradient mismatch, forecast", *map(title_of, found.forecast))
    for layer, numbers in {**found.layers, "total": found.total}.items():
        table.add_row(layer, *(f"{numbers[scheme]:.4g}" for scheme in found.forecast))
    console.print(table)
    typer.echo("")
    if found.losses:
        losses = new_table("mean loss of an example, nats", "alone", *map(title_of, SCHEMES))
        for data, means in found.losses.items():
            losses.add_row(printable(data), *(f"{means[scheme]:.4g}" for scheme in ("alone", *SCHEMES)))
        console.print(losses)
        typer.echo("")
    if found.measured:
        measured = new_table("measured on data, all examples", *map(title_of, SCHEMES))
        for what, values in found.measured.items():
            measured.add_row(_UNITS.get(what, what), *("-" if x is None else f"{x:.4g}" for x in values.values()))
        console.print(measured)
        typer.echo("")
    for sentence in found.verdicts():
        typer.echo(sentence)
