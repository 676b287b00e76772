"""Similarity of the models of a merge, judged from a small sample of their numbers.

What is told apart, with θ₀ the base and θᵢ a model:

* A fine-tune from another model. Fine-tuning moves a model by a relative norm ‖θᵢ − θ₀‖ / ‖θ₀‖ of 1e-4 to 0.3 and
  leaves the cosine of θᵢ and θ₀ above 0.95; models trained from different starts have 1.4 and 0. The limits stand
  between, at 0.5 and 1 / √(1 + 0.5²) = 0.89, which for a delta at right angles to the base are the same. Where there
  is no base, models are compared with the first of them: two fine-tunes at those limits have a cosine of
  1 / (1 + 0.5²) = 0.8 and, at right angles, a relative norm of 0.5 · √2 / √(1 + 0.5²) = 0.63.
* A model that is equal to the base, or to another model.
* A delta near the rounding of the narrow numbers that hold it. Of what a normally distributed delta changes, nine in
  ten numbers go to a neighbouring one where its standard deviation is 0.77 steps between neighbours, and rounding to
  the nearest adds an error of 0.29 steps: two fifths of what was learned. From there on it is told.
* A merged delta that the output's dtype cannot hold: told where rounding changes it by half of its norm or more.

Of integers, which are copied, not a sample is compared but all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from merge_cli.checkpoint import Checkpoint, DType, Files, Reader
from merge_cli.methods.contract import Input, Params
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.plan.roles import BASE, MODEL, Role
from merge_cli.stream.float_formats import COARSENESS, finite, rounded, step
from merge_cli.stream.integers import differing_integers
from merge_cli.stream.sample import Sample, alike, compared, take_sample

# Of fewer numbers, the cosine of unrelated models is far from zero by chance: its deviation is 1 / sqrt(count).
_FEWEST = 256
_LARGEST_NORM, _LEAST_COSINE = 0.5, 0.89
_LARGEST_DISTANCE, _LEAST_LIKENESS = 0.65, 0.8
_NEAR_ROUNDING = 0.9
_LOST = 0.5
_NARROW = frozenset({DType.BF16, DType.F16, DType.F8_E4M3, DType.F8_E5M2})


def with_sample_warnings(plan: MergePlan, *, files: Files | None = None) -> MergePlan:
    """Return the plan with what a sample of the models' numbers tells among its warnings.

    Raises:
        CheckpointError: If an input cannot be read.
    """
    with Reader(plan.input_files, files) as reader:
        found = examine(plan, reader)
    return replace(plan, warnings=(*plan.warnings, *found))


def examine(plan: MergePlan, reader: Reader) -> tuple[str, ...]:
    """Return warnings, with numbers, on what a sample of the models' numbers tells of them.

    Args:
        plan: The merge.
        reader: One that may read its inputs.

    Raises:
        CheckpointError: If an input cannot be read.
    """
    return (*differing_integers(plan, reader), *_told_by_sample(plan, reader))


def _told_by_sample(plan: MergePlan, reader: Reader) -> Sequence[str]:
    sample = take_sample(plan, reader)
    if sample is None or sample.checkpoints < 2:
        return ()
    look = _Look(plan, sample)
    equal = list(alike(plan, look.equal_pairs(), reader))
    warnings = [look.equality(*each) for each in equal]
    if sample.count >= _FEWEST:
        warnings += look.strangers()
        if look.tuned:
            warnings += look.near_rounding()
            for output in plan.variants:
                warnings += look.lost_in_the_output(output)
    return warnings


@dataclass(frozen=True)
class _Look:
    """A sample and whose it is."""

    plan: MergePlan
    sample: Sample

    @property
    def has_base(self) -> bool:
        return self.sample.tasks[0].base is not None

    @property
    def tuned(self) -> bool:
        """Tell whether the method takes the models for fine-tunes of the base."""
        return Input.DELTAS in self.plan.needs

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoint of each row."""
        models = [self.plan.by_role[Role(MODEL, i)] for i in range(self.plan.n)]
        return [self.plan.by_role[BASE], *models] if self.has_base else models

    @property
    def seen(self) -> str:
        return f"on {self.sample.count:,} sampled numbers"

    def is_same(self, one: int, other: int) -> bool:
        """Tell whether two rows are of one checkpoint: the recipe means it, or the plan warns of it."""
        return self.checkpoints[one].root.resolve() == self.checkpoints[other].root.resolve()

    def equal_pairs(self) -> list[tuple[int, int]]:
        """Return checkpoints that are equal though not the same one, each with the first that it is equal to."""
        first: dict[bytes, int] = {}
        pairs = []
        for i in range(self.sample.checkpoints):
            numbers = b"".join(part[i].tobytes() for part in self.sample.parts)
            pairs.append((first.setdefault(numbers, i), i))
        return [(one, other) for one, other in pairs if one != other and not self.is_same(one, other)]

    def equality(self, one: int, other: int, elements: int, tensors: int) -> str:
        """Say that two checkpoints are equal, as far as was looked."""
        model, twin = self.checkpoints[other].label, self.checkpoints[one].label
        is_base = self.has_base and one == 0
        what = f"the base {twin}, so it has nothing to add" if is_base else f"{twin}, so the same counts twice"
        return f"{model} equals {what}: {elements:,} sampled numbers of {tensors} tensors do not differ"

    def strangers(self) -> Iterator[str]:
        """Name models that do not look like fine-tunes of the base, or like relatives of the first model."""
        squares, dots, distances = self.products()
        reference = self.checkpoints[0].label
        largest, least = (_LARGEST_NORM, _LEAST_COSINE) if self.tuned else (_LARGEST_DISTANCE, _LEAST_LIKENESS)
        for i in range(1, self.sample.checkpoints):
            if not (squares[0] and squares[i]):
                continue
            distance = math.sqrt(distances[i] / squares[0])
            cosine = dots[i] / math.sqrt(squares[0] * squares[i])
            if distance <= largest and cosine >= least:
                continue
            numbers = (
                f"their difference has {distance:.3g} times the norm of {reference} (expected up to {largest}), and "
                f"their cosine is {cosine:.3g} (expected from {least}), {self.seen}"
            )
            label = self.checkpoints[i].label
            if self.tuned:
                yield f"{label} does not look like a fine-tune of the base {reference}: {numbers}; check base_model"
            else:
                yield f"{label} and {reference} do not look like fine-tunes of one model: {numbers}"

    def products(self) -> tuple[list[float], list[float], list[float]]:
        """Estimate ‖θᵢ‖², ⟨θᵢ, θ₀⟩ and ‖θᵢ − θ₀‖² over the sampled tensors, θ₀ being the first checkpoint."""
        sums = np.zeros((3, self.sample.checkpoints))
        for part, share in zip(self.sample.parts, self.sample.stands_for, strict=True):
            rows = part.astype(np.float64)
            both = [np.square(rows).sum(axis=1), (rows * rows[0]).sum(axis=1), np.square(rows - rows[0]).sum(axis=1)]
            sums += share * np.stack(both)
        squares, dots, distances = sums.tolist()
        return squares, dots, distances

    def near_rounding(self) -> Iterator[str]:
        """Name models whose deltas are mostly single steps of the numbers that hold them."""
        for i in range(1, self.sample.checkpoints):
            changed, near = 0, 0
            names: dict[str, None] = {}
            for task, part in zip(self.sample.tasks, self.sample.parts, strict=True):
                dtype = max((each.dtype for each in (compared(task)[0], compared(task)[i])), key=_coarseness)
                if dtype not in _NARROW:
                    continue
                delta = abs(part[i] - part[0])
                moved = delta > 0
                steps = step(np.maximum(abs(part[i]), abs(part[0])), dtype)
                changed += int(moved.sum())
                near += int((moved & (delta <= steps)).sum())
                names[dtype.torch_name] = None
            if changed >= _FEWEST and near >= _NEAR_ROUNDING * changed:
                yield (
                    f"what {self.checkpoints[i].label} learned is near the rounding of {' and '.join(names)}: of the "
                    f"numbers that it changes, {near / changed:.0%} differ from the base's by one step at most, "
                    f"{self.seen}; use checkpoints in float32 where there are"
                )

    def _factors(self, task: TensorTask, params: Params | None) -> Sequence[float]:
        """Return how much of each delta the method takes, as it says; else all of it."""
        return self.plan.method.effective_weights(params) or (1.0,) * len(task.models)

    def lost_in_the_output(self, output: Output) -> Iterator[str]:
        """Say how much of the merged delta, taken as the weighted sum of the deltas, the output's dtype loses."""
        wanted, lost, moved, back = 0.0, 0.0, 0, 0
        names: dict[str, None] = {}
        for task, part, share in zip(self.sample.tasks, self.sample.parts, self.sample.stands_for, strict=True):
            dtype = task.target.dtype
            if dtype not in _NARROW:
                continue
            delta = np.array(self._factors(task, output.params_of(task)), np.float32) @ (part[1:] - part[0])
            stored = rounded(part[0] + delta, dtype)
            error = finite(stored - part[0] - delta)
            wanted += share * float(np.square(delta, dtype=np.float64).sum())
            lost += share * float(np.square(error, dtype=np.float64).sum())
            moved += int((delta != 0).sum())
            back += int(((delta != 0) & (stored == rounded(part[0], dtype))).sum())
            names[dtype.torch_name] = None
        if moved >= _FEWEST and lost >= _LOST**2 * wanted:
            yield (
                f"{output.prefix}the output's {' and '.join(names)} is too coarse for this merge: rounding changes "
                f"the merged delta by {math.sqrt(lost / wanted):.2g} times its norm, and {back / moved:.0%} of the "
                f"numbers that it changes round to the base's, {self.seen}; give out_dtype: float32, or larger weights"
            )


def _coarseness(dtype: DType) -> float:
    return COARSENESS[dtype].eps
