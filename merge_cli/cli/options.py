"""Options that several commands share, and the plan that they make of a recipe."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from merge_cli.process import exempt_from_gc, resume_gc

if TYPE_CHECKING:
    from merge_cli.plan import MergePlan
    from merge_cli.recipe import Recipe

from merge_cli.errors import RecipeError
from merge_cli.text import did_you_mean, parse_bytes


def parse_size(text: str) -> int:
    """Return the bytes that a size on the command line means."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe, a YAML file; - for standard input.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PLACE=VALUE", help="Change a value: models.0.parameters.weight=0.3. Repeatable."),
]
Memory = Annotated[str, typer.Option(metavar="SIZE", help="Memory for all buffers together.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Workers, processes or threads; default: one per processor.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")]
ShardSize = Annotated[str, typer.Option(metavar="SIZE", help="Largest size of an output file.")]
AllowNonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Accept NaN and infinity in inputs.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Make a warning that is known before the merge an error, exit code 2.")
]
AsJson = Annotated[bool, typer.Option("--json", "-j", help="Print JSON to standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show more.")]


def _recipe(path: Path, overrides: tuple[str, ...]) -> Recipe:
    """Load a recipe from its file, or from standard input where that is what ``-`` says."""
    from merge_cli.recipe import load_recipe, parse_recipe
    from merge_cli.recipe.load import read_text

    if str(path) != "-":
        return load_recipe(path, overrides=overrides)
    text = read_text(Path("/dev/stdin"))
    return parse_recipe(text, name="standard input", folder=Path.cwd(), overrides=overrides)


def make_plan(
    recipe: Path,
    overrides: list[str] | None,
    memory: str,
    threads: int | None,
    device: str,
    shard_size: str,
    allow_nonfinite: bool,
) -> MergePlan:
    """Load a recipe and plan it, from what the command line says."""
    from merge_cli.plan import build_plan
    from merge_cli.stream import choose_device

    resume_gc()
    # Before the plan, for which the models may have to be downloaded.
    choose_device(device)
    planned = build_plan(
        _recipe(recipe, tuple(overrides or ())),
        memory=parse_size(memory),
        threads=threads,
        shard_size=parse_size(shard_size),
        device=device,
        allow_nonfinite=allow_nonfinite,
    )
    # The plan of a large model is a million objects, none of them garbage until the end.
    exempt_from_gc()
    return planned


E = TypeVar("E", bound=StrEnum)
BatchSize = Annotated[int, typer.Option(min=1, help="Changes speed and memory, not the result.")]
MaxLength = Annotated[int, typer.Option(min=1, help="Tokens at which texts are cut off.")]
TextColumn = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Column of the text; two make a pair. Repeatable.")
]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label, or of what follows a prompt.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the image.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let Python code that lies beside a model run.")
]


def parse_choice(option: str, text: str | None, choices: type[E]) -> E | None:
    """Return the member of an enumeration that an option names."""
    if text is None:
        return None
    try:
        return choices(text)
    except ValueError:
        names = [str(choice) for choice in choices]
        guess = did_you_mean(text, names)
        raise RecipeError(f"{option} {text}: expected one of {', '.join(names)}", hint=guess) from None
