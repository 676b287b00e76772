"""Accumulation of a Fisher over batches, saved so that an interrupted measurement can resume."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from merge_cli.checkpoint import Checkpoint, model_identity
from merge_cli.errors import CheckpointError, RecipeError, ResourceError
from merge_cli.fisher.batching import Tally, batches, encode_rows
from merge_cli.fisher.choosing import choose
from merge_cli.fisher.data import Rows
from merge_cli.fisher.description import describe
from merge_cli.fisher.encode import Encoder
from merge_cli.fisher.hf_model import Loaded
from merge_cli.fisher.keeping import Keeping, Signals
from merge_cli.fisher.likelihood import Estimator, Likelihood
from merge_cli.fisher.objective import Batch
from merge_cli.fisher.parameter_names import StoredNames
from merge_cli.fisher.settings import FisherSettings, Progress
from merge_cli.fisher.squared_gradients import SquaredGradients
from merge_cli.fisher.storage import load_one, load_state, save_state
from merge_cli.fisher.sum_gradient import SumGradient
from merge_cli.version import __version__

# Up to this many classes the expectation over all of them is the default.
_MOST_EXACT_CLASSES = 32


class FisherRun:
    """The state of a measurement, from its settings to its sums."""

    def __init__(
        self,
        settings: FisherSettings,
        checkpoint: Checkpoint,
        loaded: Loaded,
        rows: Rows,
        encoder: Encoder,
        folder: Path,
        progress: Progress | None,
    ) -> None:
        self.settings, self.checkpoint, self.loaded, self.rows = settings, checkpoint, loaded, rows
        self.folder = folder
        self.encoder, self._progress = encoder, progress
        self.objective = Likelihood(loaded.task, _estimator(settings, loaded), settings.draws, settings.seed)
        self.names = StoredNames(loaded.model, checkpoint)
        self.identity = model_identity(checkpoint)
        self.tally = Tally()
        self.ways: dict[str, int] = {}
        # The share of the work that an earlier run had done, and why sums could not be saved.
        self.resumed = 0.0
        self.unsaved: str | None = None
        self._signals, self._keeping = Signals(), Keeping(settings.checkpoint_every)
        self._choice = choose(settings, loaded, checkpoint, self.names)
        self._totals: dict[str, Tensor] = {}
        self._fingerprints: list[str] = []

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of what is measured, in the checkpoint's order."""
        return self._choice.shapes

    def measure(self) -> None:
        """Sum over all examples, for one part of the parameters after another.

        A signal that ends the program waits for the end of a batch, whose sums are saved then.
        """
        with self._signals.waiting() if self.settings.checkpoint_every != 0 else contextlib.nullcontext():
            for part in range(len(self._choice.parts)):
                self._measure_part(part)
                self._signals.deliver()
        if self.tally.used == 0:
            # All sums came from files; the data still tells what it was.
            for _ in self._batches():
                pass
        for fingerprint in self._fingerprints:
            self._check_data(fingerprint)

    def _measure_part(self, part: int) -> None:
        path = self._path(part)
        totals, state = self._saved(path)
        if state.get("finished"):
            self._fingerprints.append(state["finished"])
            self.resumed += 1 / len(self._choice.parts)
            return
        named = dict(self.loaded.model.named_parameters())
        wanted = {name: named[name] for name in self._choice.parts[part]}
        squares = SquaredGradients(self.loaded.model, wanted)
        gradient = SumGradient(self.loaded.model, wanted) if self.settings.gradient else None
        done, before = int(state.get("batches", "0")), 0
        for number, batch in enumerate(self._batches()):
            if number == 0:
                # The way to each gradient is settled on the first batch, also where its sums come from a file.
                squares.settle(batch, self.objective)
                _restore(totals, squares, gradient)
            if number == done - 1:
                self._check_data(state["fingerprint"])
                before = self.tally.used
            if number >= done:
                squares.add(batch, self.objective)
                if gradient is not None:
                    gradient.add(batch, self.objective)
                if self._keeping.due(number + 1):
                    self._keep(path, squares, gradient, number + 1)
            if self._progress is not None:
                self._progress(self.tally.used, self.settings.examples)
            if self._signals.come and number >= done:
                self._keep(path, squares, gradient, number + 1)
            self._signals.deliver()
        self.resumed += before / self.tally.used / len(self._choice.parts)
        for way in squares.ways().values():
            self.ways[way] = self.ways.get(way, 0) + 1
        if len(self._choice.parts) > 1:
            self._save(path, squares, gradient, {"finished": self.tally.digest.hexdigest()})
        else:
            self._totals = _totals_of(squares, gradient)

    def _keep(self, path: Path, squares: SquaredGradients, gradient: SumGradient | None, batches: int) -> None:
        """Save the sums so far; where nobody asked for that, a full disk is no reason to end."""
        state = {"batches": str(batches), "fingerprint": self.tally.digest.hexdigest()}
        try:
            with self._keeping.saving():
                self._save(path, squares, gradient, state)
        except ResourceError as error:
            if self.settings.checkpoint_every is not None:
                raise
            self.unsaved = error.message
            self._keeping = Keeping(0)

    def metadata(self) -> dict[str, str]:
        """Return what the files say about themselves."""
        told = describe(self.settings, self.loaded, self.objective, self.encoder, self.rows, self.tally)
        return {**told, "model_identity": self.identity}

    def find(self, kind: str, stored: str) -> Tensor:
        """Return the sum for a tensor of the files; ``kind`` is ``fisher`` or ``gradient``."""
        part, name = self._choice.found_in[stored]
        key = f"{kind}.{name}"
        total = self._totals[key] if self._totals else load_one(self._path(part), key)
        return self.names.stored(name, total)[stored]

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part}.safetensors"

    def _batches(self) -> Iterator[Batch]:
        settings, encode, self.tally = self.settings, self.encoder.encode, Tally()
        examples = encode_rows(self.rows, encode, self.tally, examples=settings.examples, labelled=settings.labelled)
        pad = getattr(self.loaded.processor, "pad_token_id", None) or 0
        return batches(examples, size=settings.batch_size, pad=pad, device=torch.device(settings.device))

    def _signature(self) -> str:
        """Identify what the sums are of: everything that changes them."""
        told = {**asdict(self.settings), "identity": self.identity, "version": __version__}
        for name in ("checkpoint_every", "threads"):
            told.pop(name)
        return hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()

    def _saved(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        if not path.is_file():
            return {}, {}
        totals, state = load_state(path)
        if state.get("signature") != self._signature():
            raise RecipeError(
                f"{self.folder} holds sums of another measurement: other settings, another model or version",
                hint="give the same options to continue it, or remove the folder",
            )
        return totals, state

    def _check_data(self, fingerprint: str) -> None:
        """Refuse to go on with sums of data that has changed since; the tally has read just as much of it by now."""
        if fingerprint != self.tally.digest.hexdigest():
            raise CheckpointError(
                f"{self.settings.source.name} has changed since the sums in {self.folder} were saved",
                hint="remove the folder to begin again",
            )

    def _save(self, path: Path, squares: SquaredGradients, gradient: SumGradient | None, state: dict[str, str]) -> None:
        save_state(path, _totals_of(squares, gradient), {**state, "signature": self._signature()})


def _totals_of(squares: SquaredGradients, gradient: SumGradient | None) -> dict[str, Tensor]:
    found = {f"fisher.{name}": total for name, total in squares.totals.items()}
    if gradient is not None:
        found |= {f"gradient.{name}": total for name, total in gradient.totals.items()}
    return found


def _restore(totals: dict[str, Tensor], squares: SquaredGradients, gradient: SumGradient | None) -> None:
    for key, values in totals.items():
        kind, _, name = key.partition(".")
        into = squares.totals if kind == "fisher" or gradient is None else gradient.totals
        into[name].copy_(values)


def _estimator(settings: FisherSettings, loaded: Loaded) -> Estimator:
    if settings.estimator is not None:
        return settings.estimator
    few = not loaded.task.per_token and loaded.model.config.num_labels <= _MOST_EXACT_CLASSES and settings.draws == 1
    return Estimator.EXACT if few else Estimator.SAMPLED
