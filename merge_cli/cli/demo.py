"""The command ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merge_cli.cli.options import AsJson
from merge_cli.cli.results import print_json


def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="To be made; empty where it exists.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="So small that the numbers mean nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a small model and three experts, merge them in every way and compare; leaves all of it in FOLDER."""
    from merge_cli.cli import render
    from merge_cli.demo import run_demo

    report = run_demo(folder, say=lambda text: typer.echo(text, err=True), seed=seed, quick=quick)
    if as_json:
        print_json(report.to_json())
    else:
        render.demo(report)
