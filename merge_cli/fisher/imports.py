"""Fisher diagonals from what optimisers have kept: Adam's second moments, IVON's Hessian.

Source:
    Adam: Li, Dangel, Tam & Raffel 2025, arXiv 2507.18807. With mean losses over batches of B examples the second moment
    is that of a mean gradient, about F / B at an optimum, so F ≈ B v / (1 - β₂ᵗ). It differs from the Fisher by its
    true labels and by averaging over the trajectory.
    IVON: Shen et al. 2024, arXiv 2402.17641. Its h is per example, and its effective sample size takes N's place.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_cli import __version__
from merge_cli.checkpoint import (
    Checkpoint,
    Files,
    Reader,
    Staging,
    check_apart,
    check_replaceable,
    locate,
    model_identity,
    open_checkpoint,
)
from merge_cli.checkpoint.json_text import read_json
from merge_cli.errors import CheckpointError, RecipeError, listed
from merge_cli.fisher.modelling import StoredNames, empty_model, guess_task
from merge_cli.fisher.optimizers import Moments, name_adam, name_ivon
from merge_cli.fisher.storage import float_layout, read_tensor, write_layout

# Factor by which the examples of a step may differ from a batch without more batches having gone into it.
_MOST_OFF = 1.5


class Kind(StrEnum):
    """Which optimiser the numbers are from."""

    ADAM = "adam"
    IVON = "ivon"


@dataclass(frozen=True)
class ImportSettings:
    """What to import; the fields are the options of ``merge-cli fisher import``.

    Attributes:
        model: The checkpoint that the optimiser has trained; path or hub id.
        source: ``optimizer.pt``, a safetensors file of second moments, or the state of IVON.
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
    check_replaceable(out, force=force)
    checkpoint = open_checkpoint(locate(settings.model, (Path.cwd(),)), label=settings.model)
    check_apart(out, checkpoint.root, f"the model {checkpoint.label}")
    if settings.kind is Kind.ADAM:
        _check_tokens(settings, checkpoint)
    moments = _read(settings, checkpoint)
    scale, told = _ivon_scale(settings, moments) if settings.kind is Kind.IVON else _adam_scale(settings, moments)
    stored = _by_stored_name(checkpoint, moments.values)
    _check_values(settings.source, stored)
    metadata = {
        "format": "pt",
        "kind": "fisher",
        "estimator": str(settings.kind),
        "reduction": "mean",
        "examples": told["train_examples"],
        "draws": "0",
        "labels": "true",
        "source": settings.source.name,
        "model": settings.model,
        "model_identity": model_identity(checkpoint),
        "merge_cli": __version__,
        **told,
    }
    staging = Staging(out, force=force)
    with staging.open() as folder:
        layout = float_layout(((name, tuple(values.shape)) for name, values in stored.items()), metadata)
        write_layout(folder, layout, stored.__getitem__, scale=scale, sync=sync)
        staging.commit(sync=sync)
    return metadata


def _read(settings: ImportSettings, checkpoint: Checkpoint) -> Moments:
    if settings.source.suffix == ".safetensors":
        opened = open_checkpoint(settings.source)
        with Reader(opened.files) as reader:
            found = {
                name.removesuffix(".exp_avg_sq"): read_tensor(reader, place)
                for name, place in opened.tensors.items()
                if place.dtype.is_float
            }
        return Moments(found)
    try:
        state: Any = torch.load(settings.source, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{settings.source} cannot be read: {first_line[:200]}") from error
    model = empty_model(checkpoint)
    naming = name_ivon if settings.kind is Kind.IVON else name_adam
    return naming(state, model, str(settings.source))


def _adam_scale(settings: ImportSettings, moments: Moments) -> tuple[float, dict[str, str]]:
    if settings.train_examples is None:
        raise RecipeError("--train-examples is needed: the optimiser does not tell the size of the training set")
    batch_size = settings.batch_size or _trainer_batch_size(settings.source, settings.train_examples)
    if batch_size is None:
        raise RecipeError(
            "--batch-size is needed: the examples of one optimiser step, over all devices and accumulated steps"
        )
    steps, beta2 = settings.steps or moments.steps, settings.beta2 or moments.beta2
    if steps is None or beta2 is None:
        raise RecipeError(f"{settings.source} does not tell steps and beta2", hint="give --steps and --beta2")
    told = {"train_examples": settings.train_examples, "batch_size": batch_size, "steps": steps, "beta2": beta2}
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


def _trainer_batch_size(source: Path, train_examples: int) -> int | None:
    """Read the batch size from the ``trainer_state.json`` beside ``optimizer.pt``.

    It is that of one process and one pass. Whether more of them make a step shows in the number of steps.

    Raises:
        RecipeError: If the steps say that more examples than these went into each.
    """
    path = source.parent / "trainer_state.json"
    if not path.is_file():
        return None
    state = read_json(path, Files())
    found: Any = state.get("train_batch_size")
    epochs: Any = state.get("epoch")
    steps: Any = state.get("global_step")
    if not isinstance(found, int) or found < 1:
        return None
    if not all(isinstance(each, (int, float)) and 0 < each < float("inf") for each in (epochs, steps)):
        return found
    if (said := train_examples * epochs / steps) > _MOST_OFF * found:
        raise RecipeError(
            f"{path} has batches of {found}, but {epochs:g} epochs of {train_examples} examples in {steps} steps "
            f"make about {said:.0f} examples per step",
            hint="give --batch-size: the examples of a step in all, over all devices and accumulated passes",
        )
    return found


def _by_stored_name(checkpoint: Checkpoint, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring moments to the names and the order of the checkpoint's tensors."""
    direct = {name: place for name in values if (place := checkpoint.find(name)) is not None}
    if len(direct) == len(values):
        found = {place.name: values[name] for name, place in direct.items()}
    else:
        names = StoredNames(empty_model(checkpoint), checkpoint)
        found = {}
        for name, tensor in values.items():
            stored = names.stored(name, tensor)
            if not stored:
                raise CheckpointError(f"'{name}' of the optimiser is no tensor of {checkpoint.label}")
            found |= stored
    wrong = [name for name, tensor in found.items() if tuple(tensor.shape) != checkpoint.tensors[name].shape]
    if wrong:
        raise CheckpointError(f"{listed(wrong)} of the optimiser have other shapes than in {checkpoint.label}")
    return {name: found[name] for name in checkpoint.tensors if name in found}


def _check_values(source: Path, tensors: Mapping[str, Tensor]) -> None:
    def bad(values: Iterable[str]) -> str:
        return listed(values, most=3)

    infinite = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if infinite:
        raise CheckpointError(f"{source}: {bad(infinite)} have numbers that are not finite")
    negative = [name for name, tensor in tensors.items() if bool((tensor < 0).any())]
    if negative:
        raise CheckpointError(
            f"{source}: {bad(negative)} have negative numbers, so they are no second moments",
            hint="were these first moments (exp_avg), or weights?",
        )
