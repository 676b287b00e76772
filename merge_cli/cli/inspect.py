"""The command ``inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merge_cli.cli.options import AsJson, Verbose


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
