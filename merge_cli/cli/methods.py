"""The command ``methods``."""

from __future__ import annotations

from typing import Annotated

import typer

from merge_cli.cli.options import AsJson


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
