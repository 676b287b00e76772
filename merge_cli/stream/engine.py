"""Runs a plan: every tensor in ranges, every range in blocks, every block through the pipeline.

Measures that run over all tensors come first, one pass over the inputs per round, shared by all workers. Then tensors
are merged. One that a stage must measure first is a job as a whole, so that nothing but what is written leaves its
worker; one that is too large for that is measured by all workers together. Of all other tensors each range is a job.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Reader
from merge_cli.kernels import Array, higher
from merge_cli.methods.contract import Input, Measure, Measured, MeasureOver, Params
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.process import keep_large_buffers
from merge_cli.stream.device import choose_device
from merge_cli.stream.digests import RunningDigests
from merge_cli.stream.forking import can_fork
from merge_cli.stream.input_digests import InputDigests
from merge_cli.stream.journal import Journal, Record, Span, finished_spans, gaps
from merge_cli.stream.measures import Share, combined, first_state, fold, measure_alone, shares
from merge_cli.stream.numpy_worker import NumpyWorker, numpy_suffices
from merge_cli.stream.page_cache import exceeds_page_cache
from merge_cli.stream.pipeline import Pipeline, blocks, ranges
from merge_cli.stream.pool import Job, Pool
from merge_cli.stream.progress import Listener, NullListener
from merge_cli.stream.result import StreamResult, Tallies
from merge_cli.stream.work import as_memory_error
from merge_cli.stream.worker import Sink, Worker

# Elements of a tensor on average below which Python's own work, which one thread does at a time, is most of it.
_SMALL_TENSOR = 2**15


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
        processes: Whether workers are forked processes where the system allows it; the sinks must not mind.

    Raises:
        CheckpointError: If an input cannot be read, is not finite, or was changed meanwhile.
        ResourceError: If the output cannot be written, or a worker process was killed.
        VerificationError: If a result is not finite.
    """
    keep_large_buffers()
    device = choose_device(plan.device)
    forked = processes and plan.threads > 1 and device == "cpu" and can_fork()
    crowded = exceeds_page_cache(plan)
    if inputs is not None and crowded:
        inputs.drop_behind()
    numel = sum(task.target.numel for task in plan.tasks)
    count = plan.threads if forked or numel >= _SMALL_TENSOR * len(plan.tasks) else 1
    try:
        kind = choose_worker(plan, device)
        workers = [kind(plan, reader, sinks, device, crowded) for _ in range(count)]
    except RuntimeError as error:
        raise as_memory_error(error) from None
    if forked:
        # What this process has opened, it can later tell to be unchanged.
        reader.open_all(leaf.file for task in plan.tasks for source in task.sources for leaf in source.leaves)
    pipeline, totals = Pipeline(plan, {}, {}), Tallies()
    past = journal.past.records if journal is not None else ()
    for record in past:
        totals.add(record)
    done = finished_spans(past) if done is None else done
    pool = Pool(workers, processes=forked)
    _Engine(plan, pool, count, listener or NullListener(), pipeline, totals, done, digests, inputs, journal).run()
    reader.check_unchanged()
    return StreamResult(totals.outcomes(pipeline), device, crowded)


def choose_worker(plan: MergePlan, device: str) -> type[Worker]:
    """Return what does a plan's work on a device; imports torch only where it is needed."""
    if device == "cpu" and numpy_suffices(plan):
        return NumpyWorker
    from merge_cli.stream.torch_worker import TorchWorker

    return TorchWorker


@dataclass(frozen=True)
class _Engine:
    plan: MergePlan
    pool: Pool[Worker]
    workers: int
    listener: Listener
    pipeline: Pipeline
    totals: Tallies
    done: Mapping[str, Sequence[Span]]
    digests: RunningDigests | None
    inputs: InputDigests | None
    journal: Journal | None

    def run(self) -> None:
        """Measure what runs over all tensors, then merge what is not done yet."""
        for stage in range(self.pipeline.first_streamed):
            for output in self.pipeline.measured_for(stage):
                self._measure_all(stage, output)
        for task in self._large():
            for stage, output in self._streamed(task):
                self.pipeline.single[stage, task.target.name, output.name] = self._measure_together(
                    [task], stage, output
                )
        self._merge_all()

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _measure_all(self, stage: int, output: Output) -> None:
        """Run a stage's measure to its end before anything is merged: over all tensors together, or over each."""
        merged = [task for task in self.plan.merged if task.target.numel]
        measure = self.pipeline.measure(stage, output)
        if measure is None or not merged:
            return
        if measure.over is MeasureOver.MODEL:
            self.pipeline.whole[stage, output.name] = self._measure_together(merged, stage, output)
            return
        self.listener.phase("measuring", sum(task.target.numel for task in merged))

        def alone(task: TensorTask) -> Job[Worker, tuple[str, int, Any]]:
            return lambda worker: (
                task.target.name, task.target.numel, measure_alone(self.pipeline, worker, task, stage, output)
            )  # fmt: skip

        def take(found: tuple[str, int, Any]) -> None:
            name, numel, self.pipeline.single[stage, name, output.name] = found
            self.listener.advance(name, numel)

        self.pool.run([alone(task) for task in merged], take)

    def _large(self) -> list[TensorTask]:
        """Return the tensors to measure that are so large a part of all that one worker would keep others waiting."""
        total = sum(task.target.numel for task in self.plan.merged)
        large = [task for task in self.plan.merged if 2 * self.workers * task.target.numel > total and self._left(task)]
        return large if self.workers > 1 else []

    def _streamed(self, task: TensorTask) -> list[tuple[int, Output]]:
        """Return the stages, and the merged models, for which a tensor is still to be measured."""
        return [
            (stage, output)
            for stage in range(self.pipeline.first_streamed, self.pipeline.method_stage + 1)
            for output in self.pipeline.measured_for(stage, task)
            if self.pipeline.measure(stage, output, task) is not None
            and (stage, task.target.name, output.name) not in self.pipeline.single
        ]

    def _measure_together(self, tasks: Sequence[TensorTask], stage: int, output: Output) -> Any:
        """Return what all workers together measure over some tensors."""
        measure = self.pipeline.measure(stage, output, tasks[0])
        assert measure is not None
        state = first_state(self.pipeline, tasks, stage, output, measure)
        while not isinstance(state, Measured):
            state = measure.finish(state, self._round(tasks, stage, output, measure, state))
        return state.value

    def _round(self, tasks: Sequence[TensorTask], stage: int, output: Output, measure: Measure, state: Any) -> Any:
        """Return what one round of a measure has found in some tensors."""
        # By the worker's identity: its process's own, or the only one of its thread.
        found: dict[int, Any] = {}

        def folding(share: Share) -> Job[Worker, tuple[str, int]]:
            def job(worker: Worker) -> tuple[str, int]:
                task, spans = share
                part = found.get(id(worker))
                found[id(worker)] = fold(self.pipeline, worker, stage, output, measure, state, share, part)
                # One tensor is read again at once; what comes back only after all others is in their way.
                for span in spans if len(tasks) > 1 else ():
                    worker.drop_cache(task, span)
                return task.target.name, sum(count for _, count in spans)

            return job

        seen = shares(tasks, self.plan, measure, state)
        self.listener.phase("measuring", sum(count for _, spans in seen for _, count in spans))
        jobs = [folding(share) for share in seen]
        parts = self.pool.run(jobs, lambda done: self.listener.advance(*done), lambda worker: found.get(id(worker)))
        return combined(measure, parts)

    # --- merging ------------------------------------------------------------------------------------------------------

    def _merge_all(self) -> None:
        tasks = {task.target.name: task for task in self.plan.tasks}
        copies = len(self.plan.variants)
        todo = ((task.target.dtype.itemsize, count) for task in self.plan.tasks for _, count in self._left(task))
        self.listener.phase("merging", sum(itemsize * count * copies for itemsize, count in todo))
        if self.digests is not None:
            for name, spans in self.done.items():
                for span in spans:
                    self.digests.note(name, *span)

        def take(records: list[Record]) -> None:
            for record in records:
                task = tasks[record.tensor]
                self.listener.advance(record.tensor, record.count * task.target.dtype.itemsize * copies)
                self.totals.add(record)
                if self.journal is not None:
                    self.journal.record(record)
                if self.digests is not None:
                    self.digests.add(record.tensor, record.start, record.count)
                if self.inputs is not None:
                    self.inputs.follow(task.sources, record.start, record.count)

        self.pool.run(self._merging(), take)
        if self.inputs is not None:
            self.inputs.follow_to_the_end()

    @property
    def _followed(self) -> Container[Path]:
        """The input files whose pages are dropped by whoever hashes them."""
        return self.inputs.followed if self.inputs is not None else ()

    def _left(self, task: TensorTask) -> list[Span]:
        """Return what of a tensor is not done yet, in ranges."""
        spans = self.done.get(task.target.name)
        if spans is None:
            return ranges((0, task.target.numel), self.plan.block_of(task))
        return [span for gap in gaps(spans, task.target.numel) for span in ranges(gap, self.plan.block_of(task))]

    def _merging(self) -> Iterator[Job[Worker, list[Record]]]:
        for task in self.plan.tasks:
            left = self._left(task)
            if left and task.copied is None and (streamed := self._streamed(task)):
                yield self._measure_and_merge(task, left, streamed)
            else:
                do = self._merge if task.copied is None else self._copy
                yield from (self._range(do, task, span) for span in left)

    def _range(
        self, do: Callable[[Worker, TensorTask, Span], Record], task: TensorTask, span: Span
    ) -> Job[Worker, list[Record]]:
        return lambda worker: [do(worker, task, span)]

    def _measure_and_merge(
        self, task: TensorTask, left: Sequence[Span], streamed: Sequence[tuple[int, Output]]
    ) -> Job[Worker, list[Record]]:
        def job(worker: Worker) -> list[Record]:
            single, name = self.pipeline.single, task.target.name
            for stage, output in streamed:
                single[stage, name, output.name] = measure_alone(self.pipeline, worker, task, stage, output)
            records = [self._merge(worker, task, span) for span in left]
            for stage, output in streamed:
                del single[stage, name, output.name]
            return records

        return job

    def _copy(self, worker: Worker, task: TensorTask, span: Span) -> Record:
        worker.read_ahead(task, span)
        worker.begin()
        for start, count in blocks(span, self.plan.block_of(task)):
            worker.copy(task, start, count)
        worker.drop_cache(task, span, self._followed)
        return worker.record(task, span)

    def _merge(self, worker: Worker, task: TensorTask, span: Span) -> Record:
        each = [(output, output.params_of(task)) for output in self.plan.variants]
        needs = [self.plan.method.needs(params, self.plan.needs) for _, params in each]
        worker.read_ahead(task, span)
        worker.begin()
        for start, count in blocks(span, self.plan.block_of(task)):
            inputs = self.pipeline.inputs(
                worker, task, start, count, self.pipeline.method_stage, frozenset().union(*needs)
            )
            least = worker.least(task, start, count)
            for (output, params), own in zip(each, needs, strict=True):
                self._merge_block(worker, task, start, {need: inputs[need] for need in own}, least, output, params)
        worker.drop_cache(task, span, self._followed)
        return worker.record(task, span)

    def _merge_block(
        self,
        worker: Worker,
        task: TensorTask,
        start: int,
        inputs: Mapping[Input, Array],
        least: Array | None,
        output: Output,
        params: Params | None,
    ) -> None:
        """Merge a block for one merged model, and write it and what is emitted beside it."""
        block = self.pipeline.block(inputs, task, start, self.pipeline.method_stage, output, worker.tally_of(output))
        result = self.plan.method.merge(block, params).reshape(-1)
        worker.write(result if least is None else higher(result, least), task, start, [output])
        for what, values in block.emitted.items():
            if (output.name, what) in self.plan.emitted:
                worker.write(values, task, start, [self.plan.emitted[output.name, what]])
