"""Fisher diagonals from optimizer states: Adam's second moments, IVON's Hessian.

Source:
    Adam: Li, Dangel, Tam & Raffel 2025, arXiv 2507.18807. With mean losses over batches of B examples the second moment
    is that of a mean gradient, about F / B at an optimum, so F ≈ B v / (1 - β₂ᵗ). It differs from the Fisher by its
    true labels and by averaging over the trajectory.
    IVON: Shen et al. 2024, arXiv 2402.17641. Its h is per example, and its effective sample size takes N's place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from merge_cli.checkpoint import (
    Checkpoint,
    Files,
    Reader,
    Source,
    Staging,
    check_no_overlap,
    check_replaceable,
    locate,
    model_identity,
    open_checkpoint,
)
from merge_cli.checkpoint.digest_file import write_digests
from merge_cli.checkpoint.staging import working_folders
from merge_cli.checkpoint.torch_bin import read_saved
from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.fisher.hf_model import empty_model, guess_task
from merge_cli.fisher.optimizer_state import Moments, read_adam_state, read_ivon_state
from merge_cli.fisher.parameter_names import StoredNames
from merge_cli.fisher.storage import float_layout, read_tensor, write_layout
from merge_cli.fisher.trainer import STATE_FILE, find_state, trainer_state
from merge_cli.text import listed
from merge_cli.version import __version__


class Kind(StrEnum):
    """Optimizer whose state is imported."""

    ADAM = "adam"
    IVON = "ivon"


@dataclass(frozen=True)
class ImportSettings:
    """Settings of an import; the fields are the options of ``merge-cli fisher import``.

    Attributes:
        model: The checkpoint that the optimiser has trained; path or hub id.
        source: ``optimizer.pt``, the folder of a Trainer's checkpoint that holds one, a safetensors file of second
            moments, or the state of IVON.
        kind: The optimiser.
        train_examples: Size N of the training set; for IVON None takes its effective sample size.
        batch_size: Examples per optimiser step, over all devices and accumulated steps; for Adam.
        steps: Steps taken, None to read them from the state.
        beta2: Decay of the second moments, None to read it from the state.
        tokens_per_example: Mean number of labelled tokens L of an example. Models with a label per token are trained on
            the mean over tokens, so their squared gradients are smaller by L² than those of the sum.
    """

    model: str
    source: Path
    kind: Kind = Kind.ADAM
    train_examples: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    beta2: float | None = None
    tokens_per_example: float | None = None


def import_fisher(settings: ImportSettings, out: Path, *, force: bool = False, sync: bool = True) -> dict[str, str]:
    """Write an optimiser's second moments as a mean Fisher, and return the metadata.

    Raises:
        RecipeError: If a number that the scale depends on is neither given nor in the state.
        CheckpointError: If the state does not fit the model, or holds numbers that are no second moments.
    """
    if not force:
        # Before the model, which may have to be downloaded.
        check_replaceable(out, force=False)
    checkpoint = open_checkpoint(locate(settings.model, (Path.cwd(),)), label=settings.model)
    for folder in working_folders(out):
        check_no_overlap(folder, checkpoint.root, f"the model {checkpoint.label}")
    check_replaceable(out, force=force)
    check_no_overlap(out, settings.source, "the state of the optimizer")
    if settings.kind is Kind.ADAM:
        _check_tokens(settings, checkpoint)
    settings = replace(settings, source=find_state(settings.source))
    with _reading(settings, checkpoint) as (moments, reader):
        scale, told = _ivon_scale(settings, moments) if settings.kind is Kind.IVON else _adam_scale(settings, moments)
        named = _by_stored_name(checkpoint, moments.values)
        metadata = _metadata(settings, checkpoint, told)
        for name in named.parameters:
            _check_values(settings.source, name, named.read(reader, name), scale)
        staging = Staging(out, force=force)
        with staging.open() as folder:
            shapes = ((name, checkpoint.tensors[name].shape) for name in named.parameters)
            layout = float_layout(shapes, metadata)
            write_layout(folder, layout, lambda name: named.read(reader, name), scale=scale, sync=sync)
            reader.check_unchanged()
            write_digests(folder, Files(), sync=sync)
        staging.commit(sync=sync)
    return metadata


def _metadata(settings: ImportSettings, checkpoint: Checkpoint, told: Mapping[str, str]) -> dict[str, str]:
    return {
        "format": "pt", "kind": "fisher", "estimator": str(settings.kind), "reduction": "mean",
        "examples": told["train_examples"], "draws": "0", "labels": "true", "source": settings.source.name,
        "model": settings.model, "model_identity": model_identity(checkpoint), "merge_cli": __version__, **told,
    }  # fmt: skip


@contextlib.contextmanager
def _reading(settings: ImportSettings, checkpoint: Checkpoint) -> Iterator[tuple[Moments, Reader]]:
    """Yield where the moments are, and what reads them."""
    if settings.source.suffix == ".safetensors":
        opened = open_checkpoint(settings.source)
        found = {
            name.removesuffix(".exp_avg_sq"): place for name, place in opened.tensors.items() if place.dtype.is_float
        }
        with Reader(opened.files) as reader:
            yield Moments(found), reader
        return
    state, identity = read_saved(
        settings.source, Files(), hint="save the state_dict() of the optimizer with torch.save"
    )
    with Reader([identity]) as reader:
        model = empty_model(checkpoint)
        if settings.kind is Kind.IVON:
            yield read_ivon_state(state, model, settings.source), reader
        else:
            yield (
                read_adam_state(state, model, settings.source, lambda place: float(read_tensor(reader, place))),
                reader,
            )


def _adam_scale(settings: ImportSettings, moments: Moments) -> tuple[float, dict[str, str]]:
    trainer = trainer_state(settings.source)
    if settings.train_examples is None:
        guess = trainer.examples() if trainer is not None else None
        raise RecipeError(
            "--train-examples is needed: the optimizer does not tell the size of the training set",
            hint=f"{STATE_FILE} says about {guess}, if each step took one batch on one device" if guess else None,
        )
    batch_size, batch_from = settings.batch_size, "--batch-size"
    if batch_size is None and trainer is not None:
        batch_size, batch_from = trainer.checked_batch_size(settings.train_examples), STATE_FILE
    if batch_size is None:
        raise RecipeError(
            "--batch-size is needed: the examples of one optimizer step, over all devices and accumulated steps"
        )
    steps, steps_from = settings.steps, "--steps"
    if steps is None:
        steps, steps_from = moments.steps, settings.source.name
    if steps is None and trainer is not None:
        steps, steps_from = trainer.steps, STATE_FILE
    beta2 = settings.beta2 if settings.beta2 is not None else moments.beta2
    if steps is None or beta2 is None:
        raise RecipeError(f"{settings.source} does not tell steps and beta2", hint="give --steps and --beta2")
    if not 0 <= beta2 < 1:
        raise RecipeError(f"--beta2 is {beta2:g}, expected a number from 0 to below 1")
    told = {
        "train_examples": settings.train_examples, "batch_size": batch_size, "batch_size_from": batch_from,
        "steps": steps, "steps_from": steps_from, "beta2": beta2,
    }  # fmt: skip
    tokens = settings.tokens_per_example or 1.0
    if settings.tokens_per_example is not None:
        told["tokens_per_example"] = tokens
    return batch_size * tokens**2 / (1 - beta2**steps), {name: str(value) for name, value in told.items()}


def _ivon_scale(settings: ImportSettings, moments: Moments) -> tuple[float, dict[str, str]]:
    """Keep h as the mean Fisher: H = N·F is then ess·h, the precision without the prior's part."""
    examples = settings.train_examples or moments.effective_examples
    if examples is None:
        raise RecipeError("--train-examples is needed: the state does not tell the effective sample size")
    ratio = (moments.effective_examples or examples) / examples
    told = {"train_examples": f"{examples:g}"}
    if moments.weight_decay is not None:
        # What gradient matching calls the prior precision.
        told["prior_precision"] = f"{(moments.effective_examples or examples) * moments.weight_decay:g}"
    return ratio, told


def _check_tokens(settings: ImportSettings, checkpoint: Checkpoint) -> None:
    try:
        task = guess_task(checkpoint)
    except RecipeError:
        return
    if task.per_token and settings.tokens_per_example is None:
        raise RecipeError(
            f"--tokens-per-example is needed: training for {task} takes the mean over tokens, a Fisher their sum",
            hint="give the mean number of labelled tokens of an example",
        )


@dataclass(frozen=True)
class _Named:
    """Moments by the names of the checkpoint's tensors, in their order; each is read when it is asked for."""

    places: Mapping[str, Source]
    parameters: Mapping[str, str]
    names: StoredNames | None

    def read(self, reader: Reader, name: str) -> Tensor:
        parameter = self.parameters[name]
        values = read_tensor(reader, self.places[parameter])
        return values if self.names is None else self.names.stored(parameter, values)[name]


def _by_stored_name(checkpoint: Checkpoint, places: Mapping[str, Source]) -> _Named:
    found: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    names = None
    for parameter, held in places.items():
        if (place := checkpoint.find(parameter)) is not None:
            found[place.name], shapes[place.name] = parameter, held.shape
    if len(found) < len(places):
        model = empty_model(checkpoint)
        names, known = StoredNames(model, checkpoint), {name for name, _ in model.named_parameters()}
        found.clear()
        for parameter, held in places.items():
            parts = names.stored(parameter, torch.empty(held.shape, device="meta")) if parameter in known else {}
            if not parts:
                raise CheckpointError(f"'{parameter}' of the optimizer is not a tensor of {checkpoint.label}")
            found |= dict.fromkeys(parts, parameter)
            shapes |= {name: tuple(part.shape) for name, part in parts.items()}
    wrong = [name for name in found if shapes[name] != checkpoint.tensors[name].shape]
    if wrong:
        raise CheckpointError(f"{listed(wrong)} of the optimizer have other shapes than in {checkpoint.label}")
    return _Named(places, {name: found[name] for name in checkpoint.tensors if name in found}, names)


def _check_values(source: Path, name: str, values: Tensor, scale: float) -> None:
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(f"{source}: '{name}' has numbers that are not finite")
    if bool((values < 0).any()):
        raise CheckpointError(
            f"{source}: '{name}' has negative numbers, so they are no second moments",
            hint="were these first moments (exp_avg), or weights?",
        )
    if values.numel() and float(values.max()) * scale > torch.finfo(torch.float32).max:
        raise CheckpointError(f"{source}: '{name}' times {scale:.3g} is more than float32 can hold")
