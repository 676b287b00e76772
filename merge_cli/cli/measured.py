"""Report of ``fisher`` on a measurement."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from merge_cli.cli.results import print_json

if TYPE_CHECKING:
    from merge_cli.fisher import FisherReport

# What a layout's inputs are called.
_WHAT = {"pair": "text", "completion": "prompt"}


@contextlib.contextmanager
def noting_what_is_kept(out: Path) -> Iterator[None]:
    """Note where the sums so far are on whatever ends a measurement of ``out`` from outside."""
    from merge_cli.fisher import resume_folder

    try:
        yield
    except Exception:
        raise
    except BaseException as stopped:
        if resume_folder(out).is_dir():
            stopped.add_note(f"what was summed so far is in {resume_folder(out)}: run the same command again to resume")
        raise


def tell(report: FisherReport, *, quiet: bool, as_json: bool) -> None:
    """Print what was measured, as JSON or in a line or two."""
    if as_json:
        content: dict[str, Any] = {"out": str(report.out), "metadata": report.metadata, "ways": report.ways}
        content["resumed"] = report.resumed
        content |= {"unusable": report.unusable, "unmeasured": list(report.unmeasured)}
        print_json(content | {"warnings": list(report.warnings)})
        return
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for why, count in report.unusable.items():
        typer.echo(f"warning: {count} rows were left out: {why}", err=True)
    if not quiet:
        told = report.metadata
        about = "about " if told["train_examples_from"] == "estimate" else ""
        typer.echo(
            f"{report.out}: {told['task']}, {told['estimator']} Fisher of {told['examples']} examples, "
            f"standing for {about}{told['train_examples']}"
        )
        typer.echo(f"  {_used(told, sum(report.unusable.values()))}")
        if report.resumed:
            typer.echo(f"  resumed an interrupted run, of which {report.resumed:.0%} was done")
        if report.unmeasured:
            typer.echo(f"  {len(report.unmeasured)} tensors without one, such as {report.unmeasured[0]}")


def _used(told: Mapping[str, str], left_out: int) -> str:
    """Say which columns were used, and what became of the rows."""
    inputs, label = " + ".join(json.loads(told["text_columns"])), told["label_column"]
    parts = [f"{_WHAT.get(told['layout'], told['layout'])}: {inputs}"]
    if told["layout"] == "chat":
        parts[0] += " (the assistant's turns count)"
    if label and told["classes"]:
        parts.append(f"label: {label} ({told['classes']} classes)")
    elif label:
        parts.append(f"what follows: {label}")
    if int(told["rows_cut"]):
        parts.append(f"{int(told['rows_cut']):,} of {int(told['examples']):,} cut at {told['max_length']} tokens")
    if left_out:
        parts.append(f"{left_out:,} left out")
    return ", ".join(parts)
