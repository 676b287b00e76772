"""Estimation of a Fisher diagonal, written as a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from merge_cli.checkpoint import Files, Staging, check_no_overlap, check_replaceable, locate, open_checkpoint
from merge_cli.checkpoint.digest_file import write_digests
from merge_cli.checkpoint.folder_lock import clear_locked_folder
from merge_cli.checkpoint.os_errors import write_errors
from merge_cli.checkpoint.staging import working_folders
from merge_cli.errors import CheckpointError, ResourceError
from merge_cli.fisher.accumulate import FisherRun
from merge_cli.fisher.data import open_rows
from merge_cli.fisher.encode import checked_encoder
from merge_cli.fisher.hf_model import guess_task
from merge_cli.fisher.likelihood import Estimator
from merge_cli.fisher.loss_gradient import load_for
from merge_cli.fisher.settings import FisherSettings, Progress
from merge_cli.fisher.storage import float_layout, hold_folder, write_layout
from merge_cli.optional import import_optional

# Below so many drawn labels the noise of a diagonal outweighs what it tells.
_FEW_LABELS = 256


@dataclass(frozen=True)
class FisherReport:
    """Report of a measurement.

    Attributes:
        out: The folder written.
        metadata: As stored in its files.
        ways: How many parameters had their gradients found in which way.
        unusable: Why rows were left out -> how many.
        unmeasured: Tensors of the checkpoint that the Fisher lacks: no parameters of the model, or not asked for.
        warnings: What makes the result less than it could be, in plain words.
        resumed: The share of the work that an earlier run had done.
    """

    out: Path
    metadata: dict[str, str]
    ways: dict[str, int]
    unusable: dict[str, int]
    unmeasured: tuple[str, ...]
    warnings: tuple[str, ...]
    resumed: float


def estimate_fisher(
    settings: FisherSettings, out: Path, *, force: bool = False, sync: bool = True, progress: Progress | None = None
) -> FisherReport:
    """Measure the mean squared per-example gradient of every parameter and write it to ``out``.

    With ``gradient`` the sum gradient goes to ``out/gradient``. What was saved on the way lies in ``out.measuring``
    until the end; the same settings continue from there and give the same bytes.

    Args:
        settings: What to measure.
        out: Folder to make.
        force: Whether a checkpoint that is there may be replaced.
        sync: Whether to return only when the output is on the device.
        progress: Called with the number of examples done and to do.

    Raises:
        RecipeError: If the settings contradict each other, the model or the data.
        CheckpointError: If the model or the data cannot be used.
        ResourceError: If the disk is full.
    """
    if not force:
        # Before the model, which may have to be downloaded.
        check_replaceable(out, force=False)
    settings.check()
    checkpoint = open_checkpoint(locate(settings.model, (Path.cwd(),)), label=settings.model)
    for folder in (*working_folders(out), resume_folder(out)):
        check_no_overlap(folder, checkpoint.root, f"the model {checkpoint.label}")
    check_replaceable(out, force=force)
    if settings.task is None:
        # What cannot be told is complained of before data is read.
        guess_task(checkpoint)
    import_optional("transformers", "running a model")
    rows = open_rows(settings.source)
    with hold_folder(resume_folder(out)) as folder, _threads(settings.threads):
        loaded = load_for(checkpoint, settings)
        encoder = checked_encoder(loaded, rows, settings, labelled=settings.labelled)
        run = FisherRun(settings, checkpoint, loaded, rows, encoder, folder, progress)
        run.measure()
        metadata = run.metadata()
        _write(run, out, metadata, force=force, sync=sync)
        # The output is there: what cannot be cleared away takes nothing from it.
        with contextlib.suppress(ResourceError):
            clear_locked_folder(folder, Files())
    unmeasured = tuple(name for name in checkpoint.tensors if name not in run.shapes)
    warnings = tuple(_warnings(run, metadata))
    return FisherReport(out, metadata, run.ways, dict(run.tally.unusable), unmeasured, warnings, run.resumed)


def resume_folder(out: Path) -> Path:
    """Return where the sums lie that an unfinished measurement of ``out`` has saved."""
    return out.with_name(out.name + ".measuring")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads on the processor; None for as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _warnings(run: FisherRun, metadata: dict[str, str]) -> Iterator[str]:
    estimator, examples = metadata["estimator"], int(metadata["examples"])
    labels = examples * int(metadata["draws"])
    if estimator == Estimator.SAMPLED and not run.loaded.task.per_token and labels < _FEW_LABELS:
        yield f"{labels} drawn labels make a noisy Fisher; use {_FEW_LABELS} or more, by --examples or --draws"
    if estimator == Estimator.EMPIRICAL:
        yield "the empirical Fisher vanishes where the model fits its data; the exact or sampled one does not"
    if metadata["train_examples_from"] == "examples":
        yield f"the data does not say how large it is; {examples} training examples are assumed: give --train-examples"
    if run.unsaved is not None:
        yield f"the sums could not be saved on the way: {run.unsaved}"
    if slow := run.ways.get("model", 0):
        yield f"{slow} parameters need the model to be run example by example, which is slow"


def _find_finite(run: FisherRun, kind: str, name: str) -> Tensor:
    values = run.find(kind, name)
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(
            f"the gradients of '{name}' are not finite",
            hint="compute in --dtype float32, and check the model's weights",
        )
    return values


def _write(run: FisherRun, out: Path, metadata: dict[str, str], *, force: bool, sync: bool) -> None:
    examples = int(metadata["examples"])
    staging = Staging(out, force=force)
    with staging.open() as folder:
        layout = float_layout(run.shapes.items(), metadata)
        write_layout(folder, layout, partial(_find_finite, run, "fisher"), scale=1 / examples, sync=sync)
        if run.settings.gradient:
            inside = folder / "gradient"
            with write_errors(inside):
                Files().make_folder(inside)
            layout = float_layout(run.shapes.items(), {**metadata, "kind": "gradient", "reduction": "sum"})
            # The sum over the training set, of which the examples are a sample.
            scale = float(metadata["train_examples"]) / examples
            write_layout(inside, layout, partial(_find_finite, run, "gradient"), scale=scale, sync=sync)
        write_digests(folder, Files(), sync=sync)
        staging.commit(sync=sync)
