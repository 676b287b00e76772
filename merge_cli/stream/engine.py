"""Runs a plan: every tensor in ranges, every range in blocks, every block through the chain.

A tensor is cut into ranges of a few blocks; each range is one job. Where a stage has a measure, a round of it is a set
of jobs, and the last job of a round decides what comes next: another round, the next stage's measure, or the merge.
Follow-up jobs go before the rest of the queue, so few tensors are under way at a time. Measures that run over all
tensors come first, one pass over the inputs per round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge_cli.checkpoint import Reader
from merge_cli.methods.contract import Extent, Measured, Totals
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.stream.allocator import crowds_memory, keep_large_buffers
from merge_cli.stream.device import choose_device
from merge_cli.stream.digests import RunningDigests
from merge_cli.stream.journal import Journal, Record, Span, Tally, gaps, spans_of
from merge_cli.stream.pool import Job, Pool, as_memory_error
from merge_cli.stream.progress import Listener, Quiet
from merge_cli.stream.ranges import blocks, ranges
from merge_cli.stream.result import StreamResult, diagnosis
from merge_cli.stream.result import Totals as Tallies
from merge_cli.stream.rounds import Jobs, Round
from merge_cli.stream.stages import Chain
from merge_cli.stream.worker import Sink, Worker


def stream(
    plan: MergePlan,
    writer: Sink,
    reader: Reader,
    listener: Listener | None = None,
    *,
    precision_writer: Sink | None = None,
    digests: RunningDigests | None = None,
    journal: Journal | None = None,
    done: Mapping[str, Sequence[Span]] | None = None,
) -> StreamResult:
    """Compute every tensor of the plan and write it.

    Args:
        plan: The plan.
        writer: Where the output goes.
        reader: Where the inputs come from.
        listener: Is told how the work goes.
        precision_writer: Where the posterior precision goes, if anywhere.
        digests: Hashes the output on the way.
        journal: Where finished ranges are noted; what earlier runs have noted in it is not done again.
        done: Tensor -> what of it is not to be done, as (start, count) in order; default: what the journal says.

    Raises:
        CheckpointError: If an input cannot be read, is not finite, or was changed meanwhile.
        ResourceError: If the output cannot be written.
        VerificationError: If a result is not finite.
    """
    keep_large_buffers()
    device = choose_device(plan.device)
    crowded = crowds_memory(plan)
    try:
        workers = [Worker(plan, reader, writer, device, precision_writer, crowded) for _ in range(plan.threads)]
    except RuntimeError as error:
        raise as_memory_error(error) from None
    chain, tallies = Chain(plan, {}, {}), Tallies()
    past = journal.past.records if journal is not None else ()
    for record in past:
        tallies.add(record.tensor, record.tally)
    done = spans_of(past) if done is None else done
    _Engine(plan, Pool(workers), listener or Quiet(), chain, tallies, done, digests, journal).run()
    reader.check_unchanged()
    sums = tallies.sums()
    return StreamResult(dict(sorted(tallies.counts.items())), str(device), sums, diagnosis(chain, sums), crowded)


@dataclass(frozen=True)
class _Engine:
    plan: MergePlan
    pool: Pool[Worker]
    listener: Listener
    chain: Chain
    tallies: Tallies
    done: Mapping[str, Sequence[Span]]
    digests: RunningDigests | None
    journal: Journal | None

    def run(self) -> None:
        """Measure what runs over all tensors, then merge what is not done yet."""
        for stage in range(self.chain.first_streamed):
            self._measure_all(stage)
        todo = ((task.place.dtype.itemsize, count) for task in self.plan.tasks for _, count in self._left(task))
        self.listener.phase("merging", sum(itemsize * count for itemsize, count in todo))
        self.pool.run(job for task in self.plan.tasks for job in self._begin(task))

    def _left(self, task: TensorTask) -> list[Span]:
        """Return what of a tensor is not done yet, in ranges."""
        spans = self.done.get(task.place.name)
        if spans is None:
            return ranges((0, task.place.numel), self.plan.block_numel)
        return [span for gap in gaps(spans, task.place.numel) for span in ranges(gap, self.plan.block_numel)]

    def _begin(self, task: TensorTask) -> Jobs:
        if self.digests is not None:
            for span in self.done.get(task.place.name, ()):
                yield from self.digests.add(task.place, *span)
        left = self._left(task)
        if task.copied is not None:
            yield from [self._copy_job(task, span) for span in left]
        elif left:
            yield from self._continue(task, left, self.chain.first_streamed, {})

    def _continue(self, task: TensorTask, left: list[Span], stage: int, measured: Mapping[int, Any]) -> Jobs:
        """Return the jobs for what is left of a tensor whose stages before ``stage`` are measured."""
        for current in range(stage, self.chain.method_stage + 1):
            if self.chain.measure(current, task) is not None:

                def then(value: Any, current: int = current) -> Jobs:
                    return self._continue(task, left, current + 1, {**measured, current: value})

                return self._rounds([task], current, measured, then)
        return [self._merge_job(task, span, measured) for span in left]

    def _measure_all(self, stage: int) -> None:
        """Run a stage's measure to its end before anything is merged: over all tensors together, or over each."""
        merged = self.plan.merged
        measure = self.chain.measure(stage)
        if measure is None:
            return
        if measure.over is Extent.MODEL:

            def keep(value: Any) -> Jobs:
                self.chain.whole[stage] = value
                return ()

            self.pool.run(self._rounds(merged, stage, {}, keep))
        else:
            self.listener.phase("measuring", sum(task.place.numel for task in merged))
            self.pool.run(job for task in merged for job in self._measure_alone(task, stage))

    def _measure_alone(self, task: TensorTask, stage: int) -> Jobs:
        def keep(value: Any) -> Jobs:
            self.chain.single[stage, task.place.name] = value
            self.listener.advance(task.place.name, task.place.numel)
            return ()

        return self._rounds([task], stage, {}, keep)

    def _rounds(
        self, tasks: Sequence[TensorTask], stage: int, measured: Mapping[int, Any], then: Callable[[Any], Jobs]
    ) -> Jobs:
        """Return the jobs of the first round of a measure over some tensors; ``then`` is given its value."""
        filled = [task for task in tasks if task.place.numel]
        measure = self.chain.measure(stage, filled[0]) if filled else None
        if measure is None:
            return ()
        totals = Totals(len(tasks[0].models), sum(task.place.numel for task in filled))
        state = measure.start(totals, self.chain.params(stage, tasks[0]))
        if isinstance(state, Measured):
            return then(state.value)
        return Round(self.plan, self.chain, self.listener, filled, stage, measure, measured, then, state).jobs()

    def _copy_job(self, task: TensorTask, span: Span) -> Job[Worker]:
        def copy(worker: Worker) -> Jobs:
            assert task.copied is not None
            worker.expect(task, span)
            worker.tally = Tally()
            for start, count in blocks(span, self.plan.block_numel):
                nbytes = worker.write(worker.read(task.copied, start, count), task, start)
                self.listener.advance(task.place.name, nbytes)
            return self._written(worker, task, span)

        return copy

    def _merge_job(self, task: TensorTask, span: Span, measured: Mapping[int, Any]) -> Job[Worker]:
        method = self.plan.method
        needs = method.needs(task.params, self.plan.needs)

        def merge(worker: Worker) -> Jobs:
            worker.expect(task, span)
            # What measures have counted on the way is not counted twice.
            worker.tally = Tally()
            for start, count in blocks(span, self.plan.block_numel):
                block = self.chain.block(worker, task, start, count, self.chain.method_stage, measured, needs)
                nbytes = worker.write(method.merge(block, task.params), task, start)
                if "precision" in block.emitted:
                    worker.write_precision(block.emitted["precision"], task, start)
                self.listener.advance(task.place.name, nbytes)
            return self._written(worker, task, span)

        return merge

    def _written(self, worker: Worker, task: TensorTask, span: Span) -> Jobs:
        self.tallies.add(task.place.name, worker.tally)
        worker.forget(task, span)
        if self.journal is not None:
            self.journal.record(Record(task.place.name, *span, worker.tally))
        return self.digests.add(task.place, *span) if self.digests is not None else ()
