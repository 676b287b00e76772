"""``methods``, ``inspect``, ``verify`` and ``schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from merge_cli.cli.merging import AsJson, Memory, Threads, Verbose, parse_size
from merge_cli.errors import VerificationError


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


def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A merged checkpoint.", show_default=False)],
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="K|all", help="Compute K tensors, chosen at random, or all again and compare their bytes."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Where paths in the recipe start; default: where the recipe lay, then beside OUT.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For the choice of tensors; default: another one each time.")] = None,
    memory: Memory = "512MiB",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Check OUT against its manifest: digests, index, finite numbers; with --replay also by merging again."""
    from merge_cli.cli import render
    from merge_cli.cli.progress import showing
    from merge_cli.verification import Replay
    from merge_cli.verification import verify as run_verify

    if replay is not None and replay != "all" and not (replay.isdecimal() and len(replay) < 10 and int(replay)):
        raise typer.BadParameter(f"'{replay}' is not a number of tensors, nor 'all'", param_hint="--replay")
    again = None
    if replay is not None:
        again = Replay(None if replay == "all" else int(replay), seed, folder, parse_size(memory))
    with showing(visible=not as_json) as listener:
        found = run_verify(out, replay=again, threads=threads, listener=listener)
    render.verification(found, as_json=as_json)
    if not found.sound:
        raise typer.Exit(VerificationError.exit_code)


def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from merge_cli.recipe import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2, ensure_ascii=False))
