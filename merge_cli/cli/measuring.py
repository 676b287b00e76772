"""``fisher``, ``fisher import`` and ``mismatch``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from merge_cli.cli.help import Command, epilog
from merge_cli.cli.merging import AsJson, Device, Memory, Overrides, RecipePath, ShardSize, Threads, make_plan
from merge_cli.cli.results import print_json
from merge_cli.errors import RecipeError, did_you_mean

E = TypeVar("E", bound=StrEnum)


class _MeasuresByDefault(TyperGroup):
    """Takes ``fisher MODEL ...`` as ``fisher measure MODEL ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands:
            args = ["measure", *args]
        return super().parse_args(ctx, args)


fisher = typer.Typer(
    cls=_MeasuresByDefault,
    no_args_is_help=True,
    help="Measure the Fisher diagonal of a model: `merge-cli fisher MODEL --data DATA --out DIR`.",
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the Fisher.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace a Fisher that is there.")]
Fsync = Annotated[bool, typer.Option("--fsync/--no-fsync", help="Wait until the output is on the device.")]
Quietly = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
_BatchSize = Annotated[int, typer.Option(min=1, help="Changes speed and memory, not the result.")]
_MaxLength = Annotated[int, typer.Option(min=1, help="Tokens at which texts are cut off.")]
_TextColumn = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Column of the text; two make a pair. Repeatable.")
]
_LabelColumn = Annotated[str | None, typer.Option(help="Column of the label, or of what follows a prompt.")]
_ImageColumn = Annotated[str | None, typer.Option(help="Column of the image.")]
_Estimator = Annotated[
    str | None, typer.Option(help="sampled, exact or empirical; default: exact up to 32 classes, else sampled.")
]
_TrainExamples = Annotated[
    int | None, typer.Option(min=1, help="Size of the training set; default: the size of the data.")
]
_Only = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Tensor names to measure, with wildcards. Repeatable.")
]
_CheckpointEvery = Annotated[
    int | None, typer.Option(min=0, help="Save the sums every so many batches, 0 for never; default: every minute.")
]
_Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch on the processor; default: all cores.")]
_TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let Python code that lies beside a model run.")
]
_Model = Annotated[str, typer.Argument(metavar="MODEL", help="Path or hub id.", show_default=False)]


@fisher.command(cls=Command, epilog=epilog("measure"))
def measure(
    model: _Model,
    data: Annotated[str, typer.Option(metavar="DATA", help="json, jsonl, csv, parquet, text, folder or hub id.")],
    out: Out,
    task: Annotated[str | None, typer.Option(help="Default: told from the architecture.")] = None,
    estimator: _Estimator = None,
    draws: Annotated[int, typer.Option(min=1, help="Labels drawn per example or token (sampled).")] = 1,
    examples: Annotated[int, typer.Option(min=0, help="Examples to use at most; 0 for all.")] = 1024,
    batch_size: _BatchSize = 8,
    max_length: _MaxLength = 512,
    seed: Annotated[int, typer.Option(help="Of shuffling, drawn labels and masked tokens.")] = 0,
    text_column: _TextColumn = None,
    label_column: _LabelColumn = None,
    image_column: _ImageColumn = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data; default: train, or the only one.")] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Shuffle the data by seed.")] = True,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="In which the model computes; sums are float32.")] = "float32",
    train_examples: _TrainExamples = None,
    gradient: Annotated[bool, typer.Option("--gradient", help="Store the sum gradient too, in DIR/gradient.")] = False,
    only: _Only = None,
    parts: Annotated[int, typer.Option(min=1, help="Measure the parameters in this many passes over the data.")] = 1,
    checkpoint_every: _CheckpointEvery = None,
    threads: _Threads = None,
    trust_remote_code: _TrustRemoteCode = False,
    force: Force = False,
    fsync: Fsync = True,
    quiet: Quietly = False,
    as_json: AsJson = False,
) -> None:
    """Measure the Fisher diagonal of MODEL on DATA and write it to DIR."""
    from merge_cli.cli.measured import noting_what_is_kept, tell
    from merge_cli.cli.progress import counting
    from merge_cli.fisher import Columns, Estimator, FisherSettings, Source, Task, estimate_fisher
    from merge_cli.stream import choose_device

    settings = FisherSettings(
        model=model,
        source=Source(data, subset, split, shuffle, seed),
        columns=Columns(text_column, label_column, image_column),
        task=_choice("--task", task, Task),
        estimator=_choice("--estimator", estimator, Estimator),
        draws=draws,
        examples=examples or None,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        device=choose_device(device),
        dtype=dtype,
        train_examples=train_examples,
        gradient=gradient,
        only=tuple(only or ()),
        parts=parts,
        checkpoint_every=checkpoint_every,
        trust_remote_code=trust_remote_code,
        threads=threads,
    )
    with noting_what_is_kept(out), counting("measuring", visible=not quiet and not as_json) as progress:
        report = estimate_fisher(settings, out, force=force, sync=fsync, progress=progress)
    tell(report, quiet=quiet, as_json=as_json)


@fisher.command("import", cls=Command, epilog=epilog("import"))
def import_(
    model: _Model,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="STATE", help="optimizer.pt, a Trainer's checkpoint folder, or safetensors.", show_default=False
        ),
    ],
    out: Out,
    kind: Annotated[str, typer.Option(help="adam or ivon.")] = "adam",
    train_examples: Annotated[int | None, typer.Option(min=1, help="Size of the training set.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Examples per optimizer step in all: over all devices and accumulated passes (adam)."),
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-example",
            min=1,
            help="Mean number of labelled tokens; for models with a label per token, whose loss is a mean over tokens.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps taken; default: read from the state.")] = None,
    beta2: Annotated[float | None, typer.Option(min=0, max=1, help="Default: read from the state, or 0.999.")] = None,
    force: Force = False,
    fsync: Fsync = True,
    quiet: Quietly = False,
    as_json: AsJson = False,
) -> None:
    """Turn the second moments that an optimizer kept while training MODEL into a Fisher, at no cost.

    Clipped gradients make it smaller than it is. STATE is what transformers' Trainer saves, such as `checkpoint-150`.
    """
    from merge_cli.fisher import ImportSettings, Kind, import_fisher

    chosen = _choice("--kind", kind, Kind) or Kind.ADAM
    settings = ImportSettings(model, source, chosen, train_examples, batch_size, steps, beta2, tokens)
    metadata = import_fisher(settings, out, force=force, sync=fsync)
    if as_json:
        print_json({"out": str(out), "metadata": metadata})
    elif not quiet:
        typer.echo(f"{out}: Fisher from {kind}'s state, standing for {metadata['train_examples']} examples")
        if "batch_size" in metadata:
            typer.echo(
                f"  {metadata['steps']} steps ({metadata['steps_from']}) of {metadata['batch_size']} examples "
                f"({metadata['batch_size_from']}), beta2 {metadata['beta2']}"
            )


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
    batch_size: _BatchSize = 8,
    max_length: _MaxLength = 512,
    text_column: _TextColumn = None,
    label_column: _LabelColumn = None,
    image_column: _ImageColumn = None,
    trust_remote_code: _TrustRemoteCode = False,
    overrides: Overrides = None,
    memory: Memory = "512MiB",
    threads: Threads = None,
    device: Device = "auto",
    shard_size: ShardSize = "5GB",
    as_json: AsJson = False,
) -> None:
    """Forecast how far each way of merging lies from joint training, layer by layer; RECIPE uses gradient_matching."""
    from merge_cli.cli import render
    from merge_cli.cli.progress import showing
    from merge_cli.report import mismatch_report
    from merge_cli.run import measure as measure_plan

    planned = make_plan(recipe, overrides, memory, threads, device, shard_size, allow_nonfinite=False)
    if planned.recipe.merge_method != "gradient_matching":
        raise RecipeError(
            f"{planned.recipe.origin.at('merge_method')}: mismatch is forecast from curvature, which only "
            "gradient_matching reads",
            hint="use --set merge_method=gradient_matching, with a fisher beside each model",
        )
    render.warnings(planned.warnings)
    with showing(visible=not as_json) as listener:
        found = measure_plan(planned, listener=listener)
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
            task=_choice("--task", task, Task),
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
    removes = any(min(getattr(task.params, "weight", (0.0,))) < 0 for task in planned.merged)
    render.mismatch(mismatch_report(found.sums, values, losses, removes=removes), as_json=as_json)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _say_nothing(text: str) -> None:
    pass


def _choice(option: str, text: str | None, choices: type[E]) -> E | None:
    """Return the member of an enumeration that an option names."""
    if text is None:
        return None
    try:
        return choices(text)
    except ValueError:
        names = [str(choice) for choice in choices]
        guess = did_you_mean(text, names)
        raise RecipeError(f"{option} {text}: expected one of {', '.join(names)}", hint=guess) from None
