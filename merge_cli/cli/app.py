"""The program: its commands, and what a failure looks like."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from merge_cli import __version__
from merge_cli.cli.looking import inspect, methods, schema
from merge_cli.cli.merging import merge, plan
from merge_cli.errors import Interrupted, MergeError, ResourceError

app = typer.Typer(
    name="merge-cli",
    help="Merge fine-tuned neural networks in parameter space.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (merge, plan, methods, inspect, schema):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"merge-cli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Merge fine-tuned neural networks in parameter space."""


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> None:
    """Run the program; a user's mistake ends in a message and an exit code, a bug in a stack trace and 1."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except MergeError as error:
        _fail(error, error.exit_code)
    except MemoryError:
        _fail(ResourceError("out of memory", hint="give a smaller --memory, or fewer --threads"), 4)
    except KeyboardInterrupt:
        _fail(Interrupted("interrupted; nothing was written"), 130)
    except _Terminated:
        _fail(Interrupted("terminated; nothing was written"), 143)


def _fail(error: MergeError, code: int) -> NoReturn:
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": error.message, "hint": error.hint, "exit_code": code}))
    typer.echo(f"error: {error}", err=True)
    raise SystemExit(code)
