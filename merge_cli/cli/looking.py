"""``methods``, ``inspect`` and ``schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from merge_cli.cli.merging import AsJson, Verbose


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the merge methods, or describe NAME: equation, parameters, source, and an example recipe."""
    from merge_cli.cli import render

    if name is None:
        render.methods(as_json=as_json)
    else:
        render.method(name, as_json=as_json)


def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Path or hub id.", show_default=False)],
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in CHECKPOINT: tensors, dtypes, shapes, parameters by layer, size; of a Fisher also its numbers."""
    from merge_cli.checkpoint import locate, open_checkpoint
    from merge_cli.cli import render
    from merge_cli.report import inspect_checkpoint, summarize_fisher

    opened = open_checkpoint(locate(checkpoint, (Path.cwd(),)), label=checkpoint)
    summary = summarize_fisher(opened)
    render.inspection(inspect_checkpoint(opened), summary, as_json=as_json, every_tensor=verbose)


def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from merge_cli.recipe import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2, ensure_ascii=False))
