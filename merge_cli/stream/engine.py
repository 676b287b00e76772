"""The engine: every tensor in ranges, every range in blocks, every block through the pipeline.

Measures that run over all tensors come first, one pass over the inputs per round, shared by all workers. Then tensors
are merged. One that a stage must measure first is a job as a whole, so that nothing but what is written leaves its
worker; one that is too large for that is measured by all workers together. Of all other tensors each range is a job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from merge_cli.checkpoint import Reader
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.process import keep_large_buffers
from merge_cli.stream.device import choose_device
from merge_cli.stream.digests import RunningDigests
from merge_cli.stream.input_digests import InputDigests
from merge_cli.stream.jobs import CopyRange, Job, MergeRange, MergeTensor, sent_together
from merge_cli.stream.journal import Journal
from merge_cli.stream.measure_loop import MeasureLoop, results
from merge_cli.stream.page_cache import exceeds_page_cache
from merge_cli.stream.pipeline import Measurements, Pipeline, ranges
from merge_cli.stream.progress import Listener, NullListener
from merge_cli.stream.records import Record, Span, finished_spans, gaps
from merge_cli.stream.result import StreamResult, Tallies
from merge_cli.stream.worker import Sink
from merge_cli.stream.workers import WorkerSettings, choose_executor, kernels_of


def stream(
    plan: MergePlan,
    sinks: Mapping[str, Sink],
    reader: Reader,
    listener: Listener | None = None,
    *,
    digests: RunningDigests | None = None,
    inputs: InputDigests | None = None,
    journal: Journal | None = None,
    done: Mapping[str, Sequence[Span]] | None = None,
    measured: Measurements | None = None,
    processes: bool = False,
) -> StreamResult:
    """Compute every tensor of the plan and write it.

    Args:
        plan: The plan.
        sinks: Output -> where it goes; one that has no sink is computed and not kept.
        reader: Where the inputs come from.
        listener: Is told how the work goes.
        digests: Hashes the output on the way.
        inputs: Hashes the inputs on the way.
        journal: Where finished ranges are noted; what earlier runs have noted in it is not done again.
        done: Tensor -> what of it is not to be done, as (start, count) in order; default: what the journal says.
        measured: What is not to be measured again, from :func:`measure_all`.
        processes: Whether workers are processes where the system allows it; the sinks must not mind.

    Raises:
        CheckpointError: If an input cannot be read, is not finite, or was changed meanwhile.
        ResourceError: If the output cannot be written, or a worker process was killed.
        VerificationError: If a result is not finite.
    """
    keep_large_buffers()
    crowded = exceeds_page_cache(plan)
    if inputs is not None and crowded:
        inputs.drop_behind()
    followed = frozenset(inputs.followed) if inputs is not None else frozenset()
    device, totals = choose_device(plan.device), Tallies()
    past = journal.past.records if journal is not None else ()
    for record in past:
        totals.add(record)
    known = measured.copy() if measured is not None else Measurements()
    settings = WorkerSettings(plan, reader, sinks, device, crowded, followed)
    executor, workers = choose_executor(settings, processes=processes)
    done = finished_spans(past) if done is None else done
    with executor:
        loop = MeasureLoop(Pipeline(plan, known), executor, workers, listener or NullListener())
        loop.measure_first()
        measured = known.copy()
        _Engine(plan, loop, totals, done, digests, inputs, journal).run()
    reader.check_unchanged()
    return StreamResult(totals.outcomes(loop.pipeline), device, crowded, kernels_of(plan, device), measured)


def measure_all(
    plan: MergePlan, reader: Reader, listener: Listener | None = None, *, processes: bool = False
) -> Measurements:
    """Measure what must be known before any part of a plan can be merged, and merge nothing.

    What is measured over the model is in it, so that parts of the plan can be merged apart from each other; what a
    tensor alone decides is measured by whoever merges it. The arguments are those of :func:`stream`.
    """
    everything = {task.target.name: [(0, task.target.numel)] for task in plan.tasks}
    return stream(plan, {}, reader, listener, done=everything, processes=processes).measured


@dataclass(frozen=True)
class _Engine:
    plan: MergePlan
    loop: MeasureLoop
    totals: Tallies
    done: Mapping[str, Sequence[Span]]
    digests: RunningDigests | None
    inputs: InputDigests | None
    journal: Journal | None

    def run(self) -> None:
        """Merge and copy what is not done yet."""
        for number in self._large():
            self.loop.measure_large(number)
        copies = len(self.plan.variants)
        todo = [(task.target.dtype.itemsize, count) for task in self.plan.tasks for _, count in self._left(task)]
        self.loop.listener.phase("merging", sum(itemsize * count * copies for itemsize, count in todo))
        if self.digests is not None:
            for name, spans in self.done.items():
                for span in spans:
                    self.digests.note(name, *span)
        tasks = {task.target.name: task for task in self.plan.tasks}
        messages = sent_together(self._jobs(), sum(count for _, count in todo))
        with contextlib.closing(results(self.loop.executor, messages)) as records:
            for record in records:
                assert isinstance(record, Record)
                self._take(record, tasks[record.tensor], copies)
        if self.inputs is not None:
            self.inputs.follow_to_the_end()

    def _take(self, record: Record, task: TensorTask, copies: int) -> None:
        self.loop.listener.advance(record.tensor, record.count * task.target.dtype.itemsize * copies)
        self.totals.add(record)
        if self.journal is not None:
            self.journal.record(record)
        if self.digests is not None:
            self.digests.add(record.tensor, record.start, record.count)
        if self.inputs is not None:
            self.inputs.follow(task.sources, record.start, record.count)

    def _left(self, task: TensorTask) -> list[Span]:
        """Return what of a tensor is not done yet, in ranges."""
        spans = self.done.get(task.target.name)
        if spans is None:
            return ranges((0, task.target.numel), self.plan.block_of(task))
        return [span for gap in gaps(spans, task.target.numel) for span in ranges(gap, self.plan.block_of(task))]

    def _large(self) -> list[int]:
        """Return the tensors to measure that are so large a part of all that one worker would keep others waiting."""
        total = sum(task.target.numel for task in self.plan.merged)
        return [
            i
            for i, task in enumerate(self.plan.tasks if self.loop.workers > 1 else ())
            if task.copied is None and 2 * self.loop.workers * task.target.numel > total and self._left(task)
        ]

    def _jobs(self) -> Iterator[tuple[int, Job]]:
        """Yield the jobs that are left, each behind its number of elements."""
        for i, task in enumerate(self.plan.tasks):
            left = self._left(task)
            if left and task.copied is None and (unmeasured := self.loop.unmeasured(task)):
                stages = tuple((stage, output.name) for stage, output in unmeasured)
                numel = sum(count for _, count in left)
                yield numel, MergeTensor(i, tuple(left), stages, self.loop.pipeline.known.of(task.target.name))
            elif task.copied is None:
                known = self.loop.pipeline.known.of(task.target.name)
                yield from ((span[1], MergeRange(i, span, known)) for span in left)
            else:
                yield from ((span[1], CopyRange(i, span)) for span in left)
