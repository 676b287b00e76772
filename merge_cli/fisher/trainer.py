"""Folders saved by transformers' Trainer: optimizer state, and facts about the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.errors import CheckpointError, RecipeError

STATE_FILE = "trainer_state.json"
# Factor by which the examples of a step may differ from a batch without more batches having gone into it.
_MOST_OFF = 1.5
# More than any run has, and few enough to calculate with.
_MOST = 10**12
_SHARDED = (
    ("global_step*", "DeepSpeed"),
    ("zero_to_fp32.py", "DeepSpeed"),
    ("optimizer_[0-9]*", "FSDP"),
    ("**/*.distcp", "torch.distributed"),
)


@dataclass(frozen=True)
class TrainerState:
    """Facts from ``trainer_state.json``; None where it gives no possible value.

    Attributes:
        path: The file.
        batch_size: Examples of one process and one pass.
        steps: Optimiser steps taken.
        epochs: Passes over the data made.
    """

    path: Path
    batch_size: int | None
    steps: int | None
    epochs: float | None

    def examples(self) -> int | None:
        """Return about how many examples the training set has, if each step took one batch."""
        if self.batch_size is None or self.steps is None or self.epochs is None:
            return None
        return round(self.batch_size * self.steps / self.epochs)

    def checked_batch_size(self, train_examples: int) -> int | None:
        """Return the examples of a step, if steps and epochs do not say that more batches went into one.

        Raises:
            RecipeError: If they do.
        """
        if self.batch_size is None or self.steps is None or self.epochs is None:
            return self.batch_size
        if (said := train_examples * self.epochs / self.steps) > _MOST_OFF * self.batch_size:
            raise RecipeError(
                f"{self.path} has batches of {self.batch_size}, but {self.epochs:g} epochs of {train_examples} "
                f"examples in {self.steps} steps make about {said:.0f} examples per step",
                hint="give --batch-size: the examples of a step in all, over all devices and accumulated passes",
            )
        return self.batch_size


def find_state(source: Path) -> Path:
    """Return the file of an optimiser's state: the source itself, or the one in the folder that it is.

    Raises:
        CheckpointError: If the folder has none, or one that is in parts.
    """
    if not source.is_dir():
        return source
    for pattern, whose in _SHARDED:
        if found := next(source.glob(pattern), None):
            raise CheckpointError(
                f"{source} keeps its optimizer in parts of {whose} ({found.relative_to(source)}), which cannot be read",
                hint="measure the Fisher instead: merge-cli fisher MODEL --data DATA --out DIR",
            )
    for name in ("optimizer.pt", "optimizer.bin"):
        if (source / name).is_file():
            return source / name
    inside = sorted(source.glob("checkpoint-*"))
    hint = f"name one of its checkpoints, such as {inside[-1]}" if inside else "was it saved with save_only_model?"
    raise CheckpointError(
        f"{source} holds no optimizer.pt; expected a folder that transformers' Trainer saves, such as checkpoint-150",
        hint=hint,
    )


def trainer_state(beside: Path) -> TrainerState | None:
    """Read the ``trainer_state.json`` beside an optimiser's state; None where there is none.

    Raises:
        CheckpointError: If it is no JSON object.
    """
    path = beside.parent / STATE_FILE
    if not path.is_file():
        return None
    content = read_json(path, Files())
    epochs: Any = content.get("epoch")
    known = type(epochs) in (int, float) and 0 < epochs < _MOST and math.isfinite(epochs)
    return TrainerState(
        path, _count(content.get("train_batch_size")), _count(content.get("global_step")), epochs if known else None
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < _MOST else None
