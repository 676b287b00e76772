"""A sample of the models' numbers, taken before anything is merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from merge_cli.checkpoint import Reader, Source
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.stream.decode import read_numbers
from merge_cli.stream.float_formats import Numbers, finite

# Tensors that are sampled at most, and at least where there are many models; runs in each, and elements of a run.
_TENSORS, _FEWEST = 48, 8
_RUNS, _RUN = 4, 1024
# Numbers in all, over the checkpoints; 48 tensors of up to five checkpoints.
_NUMBERS = 2**20
# The wider look: tensors, over all pairs of checkpoints, and elements of a run.
_WIDE_TENSORS, _WIDE_FEWEST, _WIDE_RUN = 2048, 64, 256


@dataclass(frozen=True)
class Sample:
    """The same elements of every checkpoint of a merge.

    Attributes:
        tasks: The sampled tensors.
        parts: Of each, float32, shape ``(checkpoints, count)``: the base where the plan reads one, then the models.
        stands_for: How many elements of each tensor one of its sampled elements stands for.
    """

    tasks: tuple[TensorTask, ...]
    parts: tuple[Numbers, ...]
    stands_for: tuple[float, ...]

    @property
    def checkpoints(self) -> int:
        """Number of checkpoints."""
        return len(self.parts[0])

    @property
    def count(self) -> int:
        """Number of elements of each checkpoint."""
        return sum(part.shape[1] for part in self.parts)


def compared(task: TensorTask) -> tuple[Source, ...]:
    """Return a merged tensor in the base, where the plan reads one, and in every model."""
    return (*([task.base] if task.base is not None else []), *task.models)


def take_sample(plan: MergePlan, reader: Reader) -> Sample | None:
    """Read a few runs of some merged matrices, spread evenly over the model; None where nothing is merged.

    The sample has about a million numbers whatever the models' sizes and number, and the same ones every time. Vectors
    (norms, biases) are left out where there are matrices: they are alike in unrelated models. NaN and infinity, which
    the merge reports, count as zero.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    filled = [task for task in plan.merged if task.target.numel]
    if not filled:
        return None
    matrices = [task for task in filled if len(task.target.shape) > 1] or filled
    checkpoints = len(compared(filled[0]))
    tasks = _spread(matrices, min(_TENSORS, max(_FEWEST, _NUMBERS // (_RUNS * _RUN * checkpoints))))
    runs = [list(_runs(task.target.numel, _RUNS, _RUN)) for task in tasks]
    parts = tuple(
        np.stack([_read(reader, tensor, each) for tensor in compared(task)])
        for task, each in zip(tasks, runs, strict=True)
    )
    stands_for = tuple(task.target.numel / part.shape[1] for task, part in zip(tasks, parts, strict=True))
    return Sample(tuple(tasks), parts, stands_for)


def alike(plan: MergePlan, pairs: Sequence[tuple[int, int]], reader: Reader) -> Iterator[tuple[int, int, int, int]]:
    """Look wider at checkpoints that are equal in a sample: at three places of many tensors, vectors included.

    Fine-tuning may change few tensors (adapters, norms, a head), which a narrow sample can miss.

    Yields:
        Of each pair that is equal here too: its two positions in :func:`compared`, elements and tensors compared.
    """
    filled = [task for task in plan.merged if task.target.numel]
    tasks = _spread(filled, max(_WIDE_FEWEST, _WIDE_TENSORS // max(1, len(pairs))))
    for one, other in pairs:
        elements = 0
        for task in tasks:
            runs = list(_runs(task.target.numel, 3, _WIDE_RUN))
            both = [compared(task)[i] for i in (one, other)]
            first, second = (_read(reader, tensor, runs) for tensor in both)
            if not np.array_equal(first, second):
                break
            elements += sum(count for _, count in runs)
        else:
            yield one, other, elements, len(tasks)


def _spread(tasks: Sequence[TensorTask], most: int) -> list[TensorTask]:
    """Return up to ``most`` of the tasks, evenly spaced, the first and the last among them."""
    if len(tasks) <= most:
        return list(tasks)
    return [tasks[i * (len(tasks) - 1) // (most - 1)] for i in range(most)]


def _runs(numel: int, runs: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield runs of a tensor, evenly spaced from its start to its end; all of it where it is small."""
    if numel <= runs * length:
        yield 0, numel
        return
    for run in range(runs):
        yield (numel - length) * run // (runs - 1), length


def _read(reader: Reader, source: Source, runs: Iterable[tuple[int, int]]) -> Numbers:
    """Read runs of a tensor one after the other as float32, what is not finite as zero."""
    return finite(np.concatenate([read_numbers(source, start, count, reader) for start, count in runs]))
