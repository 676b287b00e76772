"""The command ``schema``."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from merge_cli.recipe import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2, ensure_ascii=False))
