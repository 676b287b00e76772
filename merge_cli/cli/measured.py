"""What ``fisher`` says of a measurement."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from merge_cli.fisher import FisherReport


@contextlib.contextmanager
def noting_what_is_kept(out: Path) -> Iterator[None]:
    """Note where the sums so far are on whatever ends a measurement of ``out`` from outside."""
    from merge_cli.fisher import measuring_folder

    try:
        yield
    except Exception:
        raise
    except BaseException as stopped:
        if measuring_folder(out).is_dir():
            stopped.add_note(f"what was summed so far is in {measuring_folder(out)}: the same command continues")
        raise


def tell(report: FisherReport, *, quiet: bool, as_json: bool) -> None:
    """Print what was measured, as JSON or in a line or two."""
    if as_json:
        content = {"out": str(report.out), "metadata": report.metadata, "ways": report.ways}
        content |= {"unusable": report.unusable, "unmeasured": list(report.unmeasured)}
        typer.echo(json.dumps(content | {"warnings": list(report.warnings)}))
        return
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for why, count in report.unusable.items():
        typer.echo(f"warning: {count} rows were left out: {why}", err=True)
    if not quiet:
        told = report.metadata
        typer.echo(
            f"{report.out}: {told['task']}, {told['estimator']} Fisher of {told['examples']} examples, "
            f"standing for {told['train_examples']}"
        )
        if report.unmeasured:
            typer.echo(f"  {len(report.unmeasured)} tensors without one, such as {report.unmeasured[0]}")
