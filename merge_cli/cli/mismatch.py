"""The command ``mismatch``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from merge_cli.cli.options import (
    AsJson,
    BatchSize,
    Device,
    ImageColumn,
    LabelColumn,
    MaxLength,
    Memory,
    Overrides,
    RecipePath,
    ShardSize,
    TextColumn,
    Threads,
    TrustRemoteCode,
    make_plan,
    parse_choice,
)
from merge_cli.errors import RecipeError


def mismatch(
    recipe: RecipePath,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="Data of each model in order, to measure the mismatch; columns of its own stand behind it: "
            "FILE:text=sentence,label=category. Repeatable.",
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Examples of each data set (--data).")] = 256,
    task: Annotated[str | None, typer.Option(help="Default: told from the architecture (--data).")] = None,
    batch_size: BatchSize = 8,
    max_length: MaxLength = 512,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    image_column: ImageColumn = None,
    trust_remote_code: TrustRemoteCode = False,
    overrides: Overrides = None,
    memory: Memory = "512MiB",
    threads: Threads = None,
    device: Device = "auto",
    shard_size: ShardSize = "5GB",
    as_json: AsJson = False,
) -> None:
    """Forecast how far each way of merging lies from joint training, layer by layer; RECIPE uses gradient_matching."""
    from merge_cli.cli import render
    from merge_cli.cli.progress import byte_progress
    from merge_cli.report import mismatch_report
    from merge_cli.stream import diagnose

    planned = make_plan(recipe, overrides, memory, threads, device, shard_size, allow_nonfinite=False)
    if planned.recipe.merge_method != "gradient_matching":
        raise RecipeError(
            f"{planned.recipe.origin.at('merge_method')}: mismatch is forecast from curvature, which only "
            "gradient_matching reads",
            hint="use --set merge_method=gradient_matching, with a fisher beside each model",
        )
    render.warnings(planned.warnings)
    with byte_progress(visible=not as_json) as listener:
        found = diagnose(planned, listener=listener)
    render.warnings(found.diagnosis.warnings)
    measured = None
    if data:
        from merge_cli.fisher import Columns, FisherSettings, Source, Task
        from merge_cli.mismatch import measure_mismatch
        from merge_cli.stream import choose_device

        settings = FisherSettings(
            model="",
            source=Source(""),
            columns=Columns(text_column, label_column, image_column),
            task=parse_choice("--task", task, Task),
            examples=examples,
            batch_size=batch_size,
            max_length=max_length,
            device=choose_device(device),
            trust_remote_code=trust_remote_code,
        )
        prior = found.diagnosis.values["prior_precision"]
        shown = not as_json and sys.stderr.isatty()
        measured = measure_mismatch(planned, data, settings, prior_precision=prior, say=_say if shown else _say_nothing)
        render.warnings(measured.warnings)
    values, losses = (measured.values, measured.losses) if measured else (None, None)
    weights = [planned.method.effective_weights(task.params) or (0.0,) for task in planned.merged]
    removes = any(min(each) < 0 for each in weights)
    render.mismatch(mismatch_report(found.sums, values, losses, removes=removes), as_json=as_json)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _say_nothing(text: str) -> None:
    pass
