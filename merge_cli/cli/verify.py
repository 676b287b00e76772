"""The command ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merge_cli.cli.options import AsJson, Memory, Threads, parse_size
from merge_cli.errors import VerificationError


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
    from merge_cli.cli.progress import byte_progress
    from merge_cli.verification import Replay
    from merge_cli.verification import verify as run_verify

    if replay is not None and replay != "all" and not (replay.isdecimal() and len(replay) < 10 and int(replay)):
        raise typer.BadParameter(f"'{replay}' is not a number of tensors, nor 'all'", param_hint="--replay")
    again = None
    if replay is not None:
        again = Replay(None if replay == "all" else int(replay), seed, folder, parse_size(memory))
    with byte_progress(visible=not as_json) as listener:
        found = run_verify(out, replay=again, threads=threads, listener=listener)
    render.verification(found, as_json=as_json)
    if not found.sound:
        raise typer.Exit(VerificationError.exit_code)
