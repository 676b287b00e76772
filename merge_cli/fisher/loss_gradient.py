"""Loss and gradient of a model on encoded data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from merge_cli.checkpoint import Checkpoint, Files
from merge_cli.checkpoint.os_errors import write_errors
from merge_cli.fisher.batching import Tally, batches, encode_rows
from merge_cli.fisher.data import open_rows
from merge_cli.fisher.encode import checked_encoder
from merge_cli.fisher.hf_model import Loaded, guess_task, load_model
from merge_cli.fisher.likelihood import Estimator, Likelihood
from merge_cli.fisher.objective import Batch
from merge_cli.fisher.parameter_names import StoredNames
from merge_cli.fisher.settings import FisherSettings
from merge_cli.fisher.storage import float_layout, write_layout
from merge_cli.fisher.sum_gradient import SumGradient


@dataclass(frozen=True)
class Probe:
    """Examples of one task with their true labels.

    Attributes:
        batches: Encoded, on the CPU.
        examples: How many there are.
    """

    batches: tuple[Batch, ...]
    examples: int


def load_for(checkpoint: Checkpoint, settings: FisherSettings) -> Loaded:
    """Load a model as ``settings`` say, whichever model they name."""
    task = settings.task or guess_task(checkpoint)
    device = torch.device(settings.device)
    return load_model(checkpoint, task, dtype=settings.dtype, device=device, trusted=settings.trust_remote_code)


def make_probe(loaded: Loaded, settings: FisherSettings) -> Probe:
    """Encode the data that ``settings`` name, the way the model was trained on it.

    Raises:
        RecipeError: If a column that is needed cannot be found.
        CheckpointError: If the data cannot be read, or no row of it has a label.
    """
    rows, tally = open_rows(settings.source), Tally()
    encode = checked_encoder(loaded, rows, settings, labelled=True).encode
    examples = encode_rows(rows, encode, tally, examples=settings.examples, labelled=True)
    pad = getattr(loaded.processor, "pad_token_id", None) or 0
    found = tuple(batches(examples, size=settings.batch_size, pad=pad, device=torch.device("cpu")))
    return Probe(found, tally.used)


def write_gradient(loaded: Loaded, checkpoint: Checkpoint, probe: Probe, out: Path, *, scale: float) -> float:
    """Write the gradient of the summed loss at the true labels, under the checkpoint's names, and return that loss.

    Args:
        loaded: The model.
        checkpoint: What it was loaded from.
        probe: The examples.
        out: Folder to make.
        scale: Factor of gradient and loss.
    """
    names = StoredNames(loaded.model, checkpoint)
    parameters = dict(loaded.model.named_parameters())
    # Nothing but what is asked for may keep gradients.
    loaded.model.requires_grad_(False)
    gradient = SumGradient(loaded.model, parameters)
    objective = Likelihood(loaded.task, Estimator.EMPIRICAL)
    loss = sum(gradient.add(batch.to(loaded.model.device), objective) for batch in probe.batches)
    shapes: dict[str, tuple[int, ...]] = {}
    holder: dict[str, str] = {}
    for name, total in gradient.totals.items():
        for stored, values in names.stored(name, total.to("meta")).items():
            shapes[stored], holder[stored] = tuple(values.shape), name
    with write_errors(out):
        Files().make_folder(out)
    layout = float_layout(shapes.items(), {"format": "pt", "kind": "gradient", "reduction": "sum"})
    write_layout(
        out, layout, lambda stored: names.stored(holder[stored], gradient.totals[holder[stored]])[stored],
        scale=scale, sync=False,
    )  # fmt: skip
    return loss * scale
