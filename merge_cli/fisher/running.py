"""A measurement on its way: batches in, sums out, saved so that it can go on later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from merge_cli import __version__
from merge_cli.checkpoint import Checkpoint, model_identity
from merge_cli.errors import CheckpointError, RecipeError, listed
from merge_cli.fisher.batches import Batch
from merge_cli.fisher.data import Rows
from merge_cli.fisher.examples import Encode, Tally, batches, encode_rows
from merge_cli.fisher.gradients import SumGradient
from merge_cli.fisher.losses import Estimator, Likelihood
from merge_cli.fisher.modelling import Loaded, StoredNames
from merge_cli.fisher.settings import FisherSettings, Progress
from merge_cli.fisher.squares import SquaredGradients
from merge_cli.fisher.storage import load_one, load_state, save_state

# Up to this many classes the expectation over all of them is the default.
_MOST_EXACT_CLASSES = 32


class MeasuringRun:
    """The state of a measurement, from its settings to its sums."""

    def __init__(
        self,
        settings: FisherSettings,
        checkpoint: Checkpoint,
        loaded: Loaded,
        rows: Rows,
        encode: Encode,
        folder: Path,
        progress: Progress | None,
    ) -> None:
        self.settings, self.checkpoint, self.loaded, self.rows = settings, checkpoint, loaded, rows
        self.folder = folder
        self._encode, self._progress = encode, progress
        self.objective = Likelihood(loaded.task, _estimator(settings, loaded), settings.draws, settings.seed)
        self.names = StoredNames(loaded.model, checkpoint)
        self.identity = model_identity(checkpoint)
        self.tally = Tally()
        self.ways: dict[str, int] = {}
        self._choice = _choose(settings, loaded, checkpoint, self.names)
        self._totals: dict[str, Tensor] = {}
        self._fingerprints: list[str] = []

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of what is measured, in the checkpoint's order."""
        return self._choice.shapes

    def measure(self) -> None:
        """Sum over all examples, for one part of the parameters after another."""
        for part in range(len(self._choice.parts)):
            self._measure_part(part)
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
            return
        named = dict(self.loaded.model.named_parameters())
        wanted = {name: named[name] for name in self._choice.parts[part]}
        squares = SquaredGradients(self.loaded.model, wanted)
        gradient = SumGradient(self.loaded.model, wanted) if self.settings.gradient else None
        done = int(state.get("batches", "0"))
        for number, batch in enumerate(self._batches()):
            if number == 0:
                # The way to each gradient is settled on the first batch, also where its sums come from a file.
                squares.settle(batch, self.objective)
                _restore(totals, squares, gradient)
            if number == done - 1:
                self._check_data(state["fingerprint"])
            if number >= done:
                squares.add(batch, self.objective)
                if gradient is not None:
                    gradient.add(batch, self.objective)
            every = self.settings.checkpoint_every
            if every and number >= done and (number + 1) % every == 0:
                fingerprint = self.tally.digest.hexdigest()
                self._save(path, squares, gradient, {"batches": str(number + 1), "fingerprint": fingerprint})
            if self._progress is not None:
                self._progress(self.tally.used, self.settings.examples)
        for way in squares.ways().values():
            self.ways[way] = self.ways.get(way, 0) + 1
        if len(self._choice.parts) > 1:
            self._save(path, squares, gradient, {"finished": self.tally.digest.hexdigest()})
        else:
            self._totals = _totals_of(squares, gradient)

    def metadata(self) -> dict[str, str]:
        """Return what the files say about themselves."""
        settings, estimator = self.settings, self.objective.estimator
        train = settings.train_examples or self.rows.count or self.tally.used
        return {
            "format": "pt",
            "kind": "fisher",
            "estimator": str(estimator),
            "reduction": "mean",
            "examples": str(self.tally.used),
            "draws": str(settings.draws if estimator is Estimator.SAMPLED else 0),
            "train_examples": str(train),
            "labels": {"sampled": "model", "exact": "model", "empirical": "true"}[estimator],
            "seed": str(settings.seed),
            "task": str(self.loaded.task),
            "dataset": settings.source.name,
            "dataset_fingerprint": self.tally.digest.hexdigest(),
            "model": settings.model,
            "model_identity": self.identity,
            "dtype": settings.dtype,
            "merge_cli": __version__,
        }

    def find(self, kind: str, stored: str) -> Tensor:
        """Return the sum for a tensor of the files; ``kind`` is ``fisher`` or ``gradient``."""
        part, name = self._choice.found_in[stored]
        key = f"{kind}.{name}"
        total = self._totals[key] if self._totals else load_one(self._path(part), key)
        return self.names.stored(name, total)[stored]

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part}.safetensors"

    def _batches(self) -> Iterator[Batch]:
        settings, labelled = self.settings, self.settings.gradient or self.objective.estimator is Estimator.EMPIRICAL
        self.tally = Tally()
        examples = encode_rows(self.rows, self._encode, self.tally, examples=settings.examples, labelled=labelled)
        pad = getattr(self.loaded.tools, "pad_token_id", None) or 0
        return batches(examples, size=settings.batch_size, pad=pad, device=torch.device(settings.device))

    def _signature(self) -> str:
        """Identify what the sums are of: everything that changes them."""
        told = {**asdict(self.settings), "identity": self.identity, "version": __version__}
        told.pop("checkpoint_every")
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


@dataclass(frozen=True)
class _Choice:
    """What is measured.

    Attributes:
        shapes: Tensor name in the files -> shape, in the checkpoint's order.
        parts: The model's parameters, by name, in groups of about the same size.
        found_in: Tensor name in the files -> part and parameter that hold it.
    """

    shapes: dict[str, tuple[int, ...]]
    parts: list[list[str]]
    found_in: dict[str, tuple[int, str]]


def _choose(settings: FisherSettings, loaded: Loaded, checkpoint: Checkpoint, names: StoredNames) -> _Choice:
    """Find the parameters that hold wanted tensors, and distribute them over the parts."""
    shapes: dict[str, tuple[int, ...]] = {}
    holder: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name, parameter in loaded.model.named_parameters():
        for key, values in names.stored(name, parameter.detach().to("meta")).items():
            if not settings.only or any(fnmatchcase(key, wanted) for wanted in settings.only):
                shapes[key], holder[key], sizes[name] = tuple(values.shape), name, parameter.numel()
    if not shapes:
        what = f"--only {listed(settings.only)} matches" if settings.only else "the model's parameters match"
        raise RecipeError(
            f"{what} no tensor of {settings.model}", hint=f"there are {listed(checkpoint.tensors, most=4)}"
        )
    parts: list[list[str]] = [[] for _ in range(min(settings.parts, len(sizes)))]
    filled = [0] * len(parts)
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        least = filled.index(min(filled))
        parts[least].append(name)
        filled[least] += sizes[name]
    part_of = {name: number for number, part in enumerate(parts) for name in part}
    return _Choice(
        {key: shapes[key] for key in checkpoint.tensors if key in shapes},
        parts,
        {key: (part_of[name], name) for key, name in holder.items()},
    )
