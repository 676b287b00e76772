"""The command ``init``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def init(
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="[FOLDER]...", help="Checkpoints to merge, the base among them.")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="A merge method; default: one that fits.")] = None,
    base: Annotated[str | None, typer.Option(metavar="FOLDER", help="The base; default: found by distances.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The recipe; - prints it.")] = Path(
        "recipe.yml"
    ),
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace FILE.")] = False,
) -> None:
    """Write a recipe for checkpoints, with the reasons as comments; without any, an example for a method."""
    from merge_cli.errors import RecipeError

    shown = str(out) == "-"
    if not shown and out.exists() and not force:
        raise RecipeError(f"{out} exists", hint="choose another name with -o, or replace it with --force")
    given = list(dict.fromkeys([*([base] if base else []), *(folders or [])]))
    text = _suggested(given, base, method, Path() if shown else out.parent) if given else _example(method)
    if shown:
        typer.echo(text, nl=False)
        return
    _write(out, text)
    typer.echo(f"wrote {out}; `merge-cli plan {out}` checks it")


def _example(method: str | None) -> str:
    from merge_cli.cli.example_recipe import example_recipe
    from merge_cli.methods import find_method

    name = method or "task_arithmetic"
    told = f"# {find_method(name).equation}\n# merge-cli methods {name} describes every parameter.\n"
    return told + example_recipe(name)


def _suggested(given: Sequence[str], base: str | None, method: str | None, start: Path) -> str:
    from merge_cli.cli.suggesting import suggest_recipe

    def written(folder: str) -> str:
        if Path(folder).is_absolute() or not Path(folder).exists():
            return folder
        path = os.path.relpath(folder, start)
        return path if path.startswith(".") else f"./{path}"

    return suggest_recipe([written(each) for each in given], written(base) if base else None, method, start.resolve())


def _write(out: Path, text: str) -> None:
    from merge_cli.errors import ResourceError

    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {out}: {error.strerror}") from error
