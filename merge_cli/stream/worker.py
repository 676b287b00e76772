"""Buffers of a worker: a block's inputs in float32, and its result on the way to disk."""

from __future__ import annotations

import abc
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from merge_cli.checkpoint import DType, Extent, Reader, Source
from merge_cli.errors import CheckpointError
from merge_cli.kernels import Array, lower
from merge_cli.methods.contract import COMPANIONS, Companion, Input
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.buffers import is_variance
from merge_cli.plan.outputs import Output
from merge_cli.stream.checksums import checksum
from merge_cli.stream.decode import decode_rows, is_finite, read_whole
from merge_cli.stream.nonfinite import input_error
from merge_cli.stream.records import Record, Span, Tally

_WIDEST = 8
_READ_AHEAD = 2**16


class Sink(Protocol):
    """Sink of results: :class:`~merge_cli.checkpoint.ShardWriter`, or what compares them."""

    def write(self, view: memoryview, place: Extent, start: int) -> None:
        """Take the bytes of a tensor from element ``start``."""

    def close(self) -> None:
        """Close what is open."""


@dataclass
class Worker(abc.ABC):
    """Reads blocks into buffers that are reused, and writes results.

    ``drops`` says whether merging drops inputs from the page cache, but for ``followed``, which someone else drops.
    What :meth:`load` returns is overwritten by the next call. ``tally`` is what was counted in the range under way for
    all merged models alike, ``tallies`` what for one alone; ``checksums`` are those of what was written of it.
    """

    plan: MergePlan
    reader: Reader
    sinks: Mapping[str, Sink]
    device: str
    drops: bool = False
    followed: Collection[Path] = frozenset()
    tally: Tally = field(default_factory=Tally)
    tallies: dict[str, Tally] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    _rows: dict[str, Array] = field(default_factory=dict)
    _kept: dict[str, tuple[tuple[Source, ...], Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Allocate the raw buffers: for a block of every model as it is stored, and for one of the output."""
        self._numel = max(self.plan.block_of(task) for task in self.plan.tasks)
        sizes = (self.plan.block_of(task) * sum(s.itemsize for s in _longest(task)) for task in self.plan.tasks)
        self._raw_in, self._view_in = self._raw(max(sizes))
        self._raw_out, self._view_out = self._raw(self._numel * _WIDEST)

    def close(self) -> None:
        """Close the sinks, so that what a system only then says of what was written is heard."""
        for sink in self.sinks.values():
            sink.close()

    def begin(self) -> None:
        """Count and sum from nothing on, for a range that begins; what measures have counted is not counted twice."""
        self.tally, self.tallies, self.checksums = Tally(), {}, {}

    def tally_of(self, output: Output) -> Tally:
        """Return what takes what is counted for one merged model."""
        return self.tallies.setdefault(output.name, Tally())

    def record(self, task: TensorTask, span: Span) -> Record:
        """Return what is to be noted of a range that is done."""
        for output in self.plan.variants:
            self.tally_of(output).update(self.tally)
        return Record(task.target.name, *span, self.tallies, self.checksums)

    def put(self, view: memoryview, task: TensorTask, start: int, outputs: Iterable[Output]) -> None:
        """Write bytes of a tensor to outputs, in the order of a range's blocks."""
        for output in outputs:
            if output.name in self.sinks:
                self.checksums[output.name] = checksum(view, self.checksums.get(output.name, 0))
                self.sinks[output.name].write(view, output.layout.targets[task.target.name], start)

    def read_ahead(self, task: TensorTask, span: Span) -> None:
        """Have the system read ahead what is needed for a range; of a small one it does anyway."""
        if span[1] >= _READ_AHEAD:
            for source in task.sources:
                self.reader.read_ahead(source, *span)

    def drop_cache(self, task: TensorTask, span: Span, kept: Container[Path] = ()) -> None:
        """Let the system drop a range's inputs, where all files together would crowd out everyone else's.

        Args:
            task: The tensor.
            span: The range.
            kept: Files that are read once more, by someone who drops them then.
        """
        if self.drops:
            for source in task.sources:
                self.reader.drop_cache(source, *span, kept)

    def load(self, task: TensorTask, start: int, count: int, needs: frozenset[str]) -> dict[str, Array]:
        """Read what is needed of elements ``start`` to ``start + count``; deltas are computed, curvature is scaled.

        Raises:
            CheckpointError: If an input is not finite, a Fisher is negative, or a file cannot be read.
        """
        inputs: dict[str, Array] = {}
        if needs & {Input.BASE, Input.DELTAS}:
            assert task.base is not None
            base = self._load_rows("base", [task.base], start, count)[0]
            if Input.BASE in needs:
                inputs[Input.BASE] = base
        if Input.MODELS in needs:
            models = inputs[Input.MODELS] = self._load_rows("models", task.models, start, count)
            if Input.DELTAS in needs:
                inputs[Input.DELTAS] = models - base
        elif Input.DELTAS in needs:
            inputs[Input.DELTAS] = self._load_rows("models", task.models, start, count, less=base)
        for each in COMPANIONS:
            if needs & (each.inputs | each.base_inputs):
                inputs |= self._load_companion(each, task, start, count, needs)
        return inputs

    def _load_companion(
        self, each: Companion, task: TensorTask, start: int, count: int, needs: frozenset[str]
    ) -> dict[str, Array]:
        """Read what a companion gives; this is the one place where a mean Fisher becomes a curvature, H = N·F."""
        inputs: dict[str, Array] = {}
        if needs & each.base_inputs:
            sources = [task.base_companions[each.kind]]
            row = self._companion_rows(each, each.base_key, sources, start, count)[0]
            if each.base in needs:
                inputs[each.base] = row
            if each.base_scaled in needs:
                inputs[each.base_scaled] = row * self.plan.base_scale
        if needs & each.inputs:
            rows = self._companion_rows(each, each.kind, task.companions[each.kind], start, count)
            if each.rows in needs:
                inputs[each.rows] = rows
            if each.scaled in needs:
                # Scaled in place, unless the method reads both.
                scaled = rows + 0 if each.rows in needs else rows
                inputs[each.scaled] = self._scaled(scaled, inputs.get(each.base_scaled or ""))
        return inputs

    def _companion_rows(self, each: Companion, name: str, sources: Sequence[Source], start: int, count: int) -> Array:
        rows = self._whole(name, sources) if each.whole else self._load_rows(name, sources, start, count)
        for row, source in zip(rows, sources, strict=True):
            if each.least is not None and float(row.min()) < each.least:
                raise CheckpointError(
                    f"'{source.name}' in {source.file} has negative entries, which no Fisher diagonal has",
                    hint="is it a checkpoint, or a gradient?",
                )
        return rows

    def _scaled(self, rows: Array, base: Array | None) -> Array:
        """Multiply rows with the numbers of examples, and take the base's part from each posterior precision.

        What is left of a posterior precision is the curvature of what was merged.
        """
        for row, scale in zip(rows, self.plan.scales, strict=True):
            row *= scale
        for row, prior in zip(rows, self.plan.posteriors, strict=False):
            if prior is not None:
                row -= prior
                if base is not None:
                    row -= base
        return rows

    def _whole(self, name: str, sources: Sequence[Source]) -> Array:
        """Return all of several tensors, kept until others are asked for by the same name."""
        if name not in self._kept or self._kept[name][0] != tuple(sources):
            rows = self._from_numpy(np.stack([read_whole(source, self.reader) for source in sources]))
            if not self.plan.allow_nonfinite:
                for source in sources:
                    if not is_finite(source, self.reader):
                        raise input_error(self.plan, source, self.reader)
            self._kept[name] = tuple(sources), rows
        return self._kept[name][1]

    def _load_rows(
        self, name: str, sources: Sequence[Source], start: int, count: int, less: Array | None = None
    ) -> Array:
        """Read one run of each tensor, less what is given, into rows of a float32 buffer: ``(len(sources), count)``."""
        rows = self._rows_of(name, len(sources), count)
        wrong = decode_rows(sources, start, rows, reader=self.reader, buffers=self, less=less)
        for source, several in zip(sources, wrong, strict=True):
            self._note_nonfinite(several, source)
        return rows

    def bytes_of(self, nbytes: int) -> tuple[Any, memoryview]:
        """Return the beginning of the buffer for bytes as they are stored, and a view of it."""
        return self._raw_in[:nbytes], self._view_in[:nbytes]

    def _note_nonfinite(self, wrong: int, source: Source) -> None:
        """Count numbers that are not finite, where they are allowed."""
        if not wrong:
            return
        if not self.plan.allow_nonfinite:
            raise input_error(self.plan, source, self.reader)
        self.tally.counts["nonfinite"] += wrong

    def least(self, task: TensorTask, start: int, count: int) -> Array | None:
        """Return what a run of variances is raised to: the smallest of the base's and the models'; None for all else.

        A sum of task vectors may take a variance below zero, whose root is no number, or so close to it that all
        activations explode. Between the inputs nothing is changed.
        """
        if not is_variance(task.target.name):
            return None
        lowest = None
        for tensor in (task.base, *task.models):
            if tensor is not None:
                row = self._load_rows("copied", [tensor], start, count)[0]
                # Added to zero, because the next row takes the place of this one.
                lowest = row + 0 if lowest is None else lower(lowest, row)
        return lowest

    @abc.abstractmethod
    def write(self, result: Array, task: TensorTask, start: int, outputs: Sequence[Output]) -> None:
        """Cast a result to the dtype of outputs, which is the same in all of them, check it, write it.

        Raises:
            VerificationError: If it is not finite.
        """

    @abc.abstractmethod
    def copy(self, task: TensorTask, start: int, count: int) -> None:
        """Write a run of a tensor that is copied to every merged model.

        Raises:
            CheckpointError: If it is not finite where it comes from.
            VerificationError: If it is not finite in the output's dtype.
        """

    @abc.abstractmethod
    def _raw(self, nbytes: int) -> tuple[Any, memoryview]:
        """Return a buffer of bytes, and a view of it."""

    @abc.abstractmethod
    def _from_numpy(self, numbers: NDArray[np.float32]) -> Array:
        """Return numbers where the work is done."""

    @abc.abstractmethod
    def typed(self, raw: Any, dtype: DType) -> Any:
        """Return bytes of a buffer as numbers of a dtype."""

    @abc.abstractmethod
    def _rows_of(self, name: str, n: int, count: int) -> Array:
        """Return a float32 buffer, shape ``(n, count)``, that is kept under a name."""


def _longest(task: TensorTask) -> Sequence[Source]:
    """Return the largest set of tensors that is read at a time."""
    if task.copied is not None:
        return (task.copied,)
    single = [tensor for tensor in (task.base, *task.base_companions.values()) if tensor is not None]
    sets = (task.models, single, *task.companions.values())
    return max(sets, key=lambda sources: sum(source.itemsize for source in sources))
