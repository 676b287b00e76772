"""The program: its commands, signals and error messages."""

from __future__ import annotations

import io
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from merge_cli.cli.demo import demo
from merge_cli.cli.doctor import doctor, environment_lines
from merge_cli.cli.fisher import fisher
from merge_cli.cli.help import Command, epilog, root_epilog
from merge_cli.cli.init import init
from merge_cli.cli.inspect import inspect
from merge_cli.cli.merge import merge, plan
from merge_cli.cli.methods import methods
from merge_cli.cli.mismatch import mismatch
from merge_cli.cli.results import Program, print_error
from merge_cli.cli.schema import schema
from merge_cli.cli.verify import verify
from merge_cli.errors import Interrupted, MergeError, ResourceError, WriteError, of_system
from merge_cli.optional import missing_library
from merge_cli.process import end_process, pause_gc
from merge_cli.text import shown
from merge_cli.version import __version__

app = typer.Typer(
    name="merge-cli",
    cls=Program,
    help="Merge fine-tuned neural networks in parameter space.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=root_epilog(),
)
_COMMANDS = (
    (init, "Write a recipe for checkpoints"),
    (merge, "Merge the models of a recipe"),
    (plan, "Check a recipe, show what it would do"),
    (verify, "Check a merged checkpoint"),
    (mismatch, "Forecast gradient matching, layer by layer"),
    (methods, "List and describe the merge methods"),
    (inspect, "Show what is in a checkpoint or a Fisher"),
    (schema, "Print the JSON Schema of a recipe"),
    (demo, "Train, merge and compare small models"),
    (doctor, "Show versions, kernels, GPU, caches, leftovers"),
)
for command, short in _COMMANDS:
    app.command(cls=Command, epilog=epilog(command.__name__), short_help=short)(command)
app.add_typer(fisher, name="fisher", short_help="Measure or import a Fisher diagonal")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"merge-cli {__version__}")
        # Reading the other option the usual way takes libraries that a version does not.
        for line in environment_lines() if {"-v", "--verbose"} & set(sys.argv[1:]) else ():
            typer.echo(line)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="With --version, also what computes, and with which libraries.")
    ] = False,
) -> None:
    """Merge fine-tuned neural networks in parameter space."""


# As a shell says of a program that ended because nobody reads on.
_PIPE_CLOSED = 128 + signal.SIGPIPE
_LOADER = ("failed to map segment", "annot allocate memory", "oo many open files", "out of memory")
_LIMITS = "raise the limits of memory or open files (ulimit -a shows them)"
_STOPPING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class _Stopped(BaseException):
    """A signal arrived that ends the program. Not a KeyboardInterrupt: Typer would end it without a word."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # Removing what was begun takes a moment, in which another signal must not interrupt it.
    for each in _STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped(number)


def main() -> None:
    """Run the program; a user's mistake ends in a message and an exit code, a bug in a stack trace and 1."""
    pause_gc()
    for number in _STOPPING:
        # Whoever started the program may have asked for a signal to be ignored, as nohup and `&` in scripts do.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        # A console that cannot show a letter shows a question mark.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(standalone_mode=True)
    except MergeError as error:
        _fail(error, error.exit_code, error)
    except OSError as error:
        _fail(of_system(error), of_system(error).exit_code, error)
    except ImportError as error:
        # So the loader says that it has not the memory or the descriptors for a library.
        if (missing := missing_library(error)) is not None:
            _fail(missing, missing.exit_code, error)
        if not any(word in str(error) for word in _LOADER):
            raise
        _fail(ResourceError(f"a library cannot be loaded: {error}"[:300], hint=_LIMITS), 4, error)
    except MemoryError as error:
        _fail(ResourceError("out of memory", hint="give a smaller --memory, or fewer --threads"), 4, error)
    except _Stopped as stopped:
        kept = getattr(stopped, "__notes__", [])
        message = _STOPPING[stopped.number] if kept else f"{_STOPPING[stopped.number]}; nothing was written"
        _fail(Interrupted(message), 128 + stopped.number, stopped)
    except SystemExit:
        # Typer takes a reader that has gone for a failure of its own, and stdout out of use.
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            raise SystemExit(_PIPE_CLOSED) from None
        raise


def program() -> NoReturn:
    """Run :func:`main` as the whole process."""
    code: int | str | None = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    # All is said and done: a signal that comes now has nothing to stop.
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    end_process(code, broken_pipe=_PIPE_CLOSED, write_error=WriteError.exit_code)


def _fail(error: MergeError, code: int, cause: BaseException) -> NoReturn:
    """End the program with a message; notes on the cause, on what it has left, are hints too."""
    hints = [*([error.hint] if error.hint else []), *getattr(cause, "__notes__", [])]
    error = MergeError(error.message, hint="; ".join(hints) or None)
    print_error(error.message, error.hint, code)
    for line in shown(f"error: {error}"):
        typer.echo(line, err=True)
    raise SystemExit(code)
