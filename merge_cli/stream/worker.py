"""Worker: a block's inputs on the way in, its result on the way to disk."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from merge_cli.checkpoint import DType, Extent, Reader, Source
from merge_cli.kernels import Array, Backend, count_nonfinite
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.process import release_freed_memory
from merge_cli.stream.block_inputs import BlockInputs
from merge_cli.stream.checksums import checksum
from merge_cli.stream.decode import typed
from merge_cli.stream.nonfinite import input_error, output_error
from merge_cli.stream.records import Record, Span, Tally

_WIDEST = 8
_READ_AHEAD = 2**16


class Sink(Protocol):
    """Sink of results: :class:`~merge_cli.checkpoint.ShardWriter`, or what compares them."""

    def write(self, view: memoryview, target: Extent, start: int) -> None:
        """Take the bytes of a tensor from element ``start``."""

    def close(self) -> None:
        """Close what is open."""


@dataclass
class Worker:
    """Reads blocks, writes results, and counts what happens to them.

    Attributes:
        plan: The plan.
        reader: Where the inputs come from.
        sinks: Output -> where it goes.
        backend: What computes.
        drops: Whether merging drops inputs from the page cache.
        followed: The input files that someone else drops.
        tally: What was counted in the range under way for all merged models alike.
        tallies: What was counted for one alone.
        checksums: Output -> the checksum of what was written of the range.
        has_measured: Whether it has folded parts of measures since the last range.
        inputs: Reads blocks.
    """

    plan: MergePlan
    reader: Reader
    sinks: Mapping[str, Sink]
    backend: Backend
    drops: bool = False
    followed: Collection[Path] = frozenset()
    tally: Tally = field(default_factory=Tally)
    tallies: dict[str, Tally] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    has_measured: bool = False
    inputs: BlockInputs = field(init=False)

    def __post_init__(self) -> None:
        """Allocate the buffers: for the inputs of a block, and for its result in the widest dtype."""
        self.inputs = BlockInputs(self.plan, self.reader, self.backend, self._note_nonfinite)
        self._out = self.backend.staging(_WIDEST * max(self.plan.block_of(task) for task in self.plan.tasks))

    def close(self) -> None:
        """Close the sinks, so that what a system only then says of what was written is heard."""
        for sink in self.sinks.values():
            sink.close()

    def begin(self) -> None:
        """Count and sum from nothing on, for a range that begins; what measures have counted is not counted twice."""
        if self.has_measured:
            # What measuring has freed would lie between the temporaries of merging: a twentieth of the memory.
            release_freed_memory()
            self.has_measured = False
        self.tally, self.tallies, self.checksums = Tally(), {}, {}

    def tally_of(self, output: Output) -> Tally:
        """Return what takes what is counted for one merged model."""
        return self.tallies.setdefault(output.name, Tally())

    def record(self, task: TensorTask, span: Span) -> Record:
        """Return what is to be noted of a range that is done."""
        for output in self.plan.variants:
            self.tally_of(output).update(self.tally)
        return Record(task.target.name, *span, self.tallies, self.checksums)

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

    def write(self, result: Array, task: TensorTask, start: int, outputs: Sequence[Output]) -> None:
        """Cast a result to the dtype of outputs, which is the same in all of them, check it, write it.

        Raises:
            VerificationError: If it is not finite.
        """
        dtype = outputs[0].layout.targets[task.target.name].dtype
        raw = self._out[: result.shape[0] * dtype.itemsize]
        wrong = self.backend.from_float32(self.backend.plain(result), dtype.torch_name, typed(raw, dtype))
        if wrong and not (task.copied is not None and self.plan.allow_nonfinite):
            raise output_error(self.plan, task, outputs[0], self.reader)
        self._put(raw, task, start, outputs)

    def copy(self, task: TensorTask, start: int, count: int) -> None:
        """Write a run of a tensor that is copied to every merged model.

        Raises:
            CheckpointError: If it is not finite where it comes from.
            VerificationError: If it is not finite in the output's dtype.
        """
        source, dtype = task.copied, task.target.dtype
        assert source is not None
        if not source.verbatim:
            self.write(self.inputs.rows("copied", [source], start, count)[0], task, start, self.plan.variants)
            return
        stored = self.inputs.stored(source, start, count)
        cast = source.dtype is not dtype
        if source.dtype.is_float and (cast or not self.plan.allow_nonfinite):
            wrong = count_nonfinite(stored, source.dtype.torch_name)
            if wrong:
                self._note_nonfinite(wrong, source)
        if cast:
            self._cast(stored, source.dtype, task, start)
        else:
            self._put(stored, task, start, self.plan.variants)

    def _cast(self, stored: NDArray[Any], dtype: DType, task: TensorTask, start: int) -> None:
        rows = self.backend.empty(stored.shape)
        self.backend.to_float32(stored, dtype.torch_name, None, rows)
        self.write(rows[0], task, start, self.plan.variants)

    def _put(self, numbers: NDArray[Any], task: TensorTask, start: int, outputs: Iterable[Output]) -> None:
        """Write a tensor's bytes to outputs, in the order of a range's blocks."""
        view = numbers.data.cast("B")
        for output in outputs:
            if output.name in self.sinks:
                self.checksums[output.name] = checksum(view, self.checksums.get(output.name, 0))
                self.sinks[output.name].write(view, output.layout.targets[task.target.name], start)

    def _note_nonfinite(self, wrong: int, source: Source) -> None:
        """Count numbers that are not finite, where they are allowed."""
        if not self.plan.allow_nonfinite:
            raise input_error(self.plan, source, self.reader)
        self.tally.counts["nonfinite"] += wrong
