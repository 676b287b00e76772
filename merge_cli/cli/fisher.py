"""The commands ``fisher`` and ``fisher import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from merge_cli.cli.help import Command, epilog
from merge_cli.cli.options import (
    AsJson,
    BatchSize,
    Device,
    ImageColumn,
    LabelColumn,
    MaxLength,
    TextColumn,
    TrustRemoteCode,
    parse_choice,
)
from merge_cli.cli.results import print_json


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
    batch_size: BatchSize = 8,
    max_length: MaxLength = 512,
    seed: Annotated[int, typer.Option(help="Of shuffling, drawn labels and masked tokens.")] = 0,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    image_column: ImageColumn = None,
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
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
    fsync: Fsync = True,
    quiet: Quietly = False,
    as_json: AsJson = False,
) -> None:
    """Measure the Fisher diagonal of MODEL on DATA and write it to DIR."""
    from merge_cli.cli.measured import noting_what_is_kept, tell
    from merge_cli.cli.progress import example_progress
    from merge_cli.fisher import Columns, Estimator, FisherSettings, Source, Task, estimate_fisher
    from merge_cli.stream import choose_device

    settings = FisherSettings(
        model=model,
        source=Source(data, subset, split, shuffle, seed),
        columns=Columns(text_column, label_column, image_column),
        task=parse_choice("--task", task, Task),
        estimator=parse_choice("--estimator", estimator, Estimator),
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
    with noting_what_is_kept(out), example_progress("measuring", visible=not quiet and not as_json) as progress:
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

    chosen = parse_choice("--kind", kind, Kind) or Kind.ADAM
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
