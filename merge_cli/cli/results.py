"""JSON results on standard output, of a wrong command line too."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

# Is raised where a script that reads the older form would misread the new one.
_FORMAT = 1
# Newer versions of Typer bring a click of their own: the class is found from one that Typer gives in any.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_SHORT = re.compile("-[fqv]*j[fqv]*")


def print_json(content: Mapping[str, Any]) -> None:
    """Print a result as one line of JSON."""
    typer.echo(json.dumps({"format": _FORMAT, **content}))


def print_error(error: str, hint: str | None, code: int) -> None:
    """Print an error as a result, where the command line asks for JSON."""
    if any(word == "--json" or _SHORT.fullmatch(word) for word in sys.argv[1:]):
        print_json({"error": error, "hint": hint, "exit_code": code})


class Program(TyperGroup):
    """The commands; a command line that is wrong is told as JSON too, where that is asked for."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read what stands before the command's name."""
        try:
            return super().make_context(*arguments, **options)
        except _UsageError as error:
            _print_usage_error(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Read the command's own words, and run it."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            _print_usage_error(error)
            raise


def _print_usage_error(error: Any) -> None:
    words, ctx = ["--help shows what it takes"], error.ctx
    while ctx is not None and ctx.parent is not None:
        words.insert(0, ctx.info_name)
        ctx = ctx.parent
    print_error(error.format_message(), " ".join(["merge-cli", *words]), error.exit_code)
