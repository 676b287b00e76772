"""The loop that measures: for each measure its rounds, for each round its jobs, whose parts are combined in order."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from merge_cli.methods.contract import Measure, Measured, MeasureOver
from merge_cli.plan import TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.stream.executors import Executor
from merge_cli.stream.jobs import Fold, Job, Measurement, MeasureTensor, Part, Result, sent_together
from merge_cli.stream.measures import TaskBlocks, blocks_seen, first_state, in_groups, numel_of
from merge_cli.stream.pipeline import Pipeline
from merge_cli.stream.progress import Listener


@dataclass(frozen=True)
class MeasureLoop:
    """Measures the tensors of a plan on all workers; what is found becomes known to the pipeline.

    Attributes:
        pipeline: The stages, and what is known.
        executor: Runs the jobs.
        workers: How many workers it has.
        listener: Is told how the work goes.
    """

    pipeline: Pipeline
    executor: Executor[Sequence[Job], list[Result]]
    workers: int
    listener: Listener

    def measure_first(self) -> None:
        """Measure what runs over all tensors, and whatever that depends on."""
        pipeline, known = self.pipeline, self.pipeline.known
        numbers = [i for i, task in enumerate(pipeline.plan.tasks) if task.copied is None and task.target.numel]
        stages = [
            (stage, output) for stage in range(pipeline.first_streamed) for output in pipeline.measured_for(stage)
        ]
        for stage, output in stages if numbers else ():
            measure = pipeline.measure(stage, output)
            if measure is not None and measure.over is MeasureOver.TENSOR:
                self._measure_each(numbers, stage, output)
            elif measure is not None and (stage, output.name) not in known.model:
                known.model[stage, output.name] = self._measure_together(numbers, stage, output)

    def measure_large(self, number: int) -> None:
        """Measure the tensor of one task on all workers, for every stage that has not."""
        name = self.pipeline.plan.tasks[number].target.name
        for stage, output in self.unmeasured(self.pipeline.plan.tasks[number]):
            self.pipeline.known.add(name, stage, output.name, self._measure_together([number], stage, output))

    def unmeasured(self, task: TensorTask) -> list[tuple[int, Output]]:
        """Return the stages, and the merged models, for which a tensor is still to be measured."""
        pipeline = self.pipeline
        return [
            (stage, output)
            for stage in range(pipeline.first_streamed, pipeline.method_stage + 1)
            for output in pipeline.measured_for(stage, task)
            if pipeline.measure(stage, output, task) is not None and not self._is_known(task, stage, output)
        ]

    def _is_known(self, task: TensorTask, stage: int, output: Output) -> bool:
        return (stage, output.name) in self.pipeline.known.tensors.get(task.target.name, {})

    def _measure_each(self, numbers: Sequence[int], stage: int, output: Output) -> None:
        """Measure tensors, each on one worker."""
        tasks, known = self.pipeline.plan.tasks, self.pipeline.known
        jobs = [
            (tasks[i].target.numel, MeasureTensor(i, stage, output.name, known.of(tasks[i].target.name)))
            for i in numbers
            if not self._is_known(tasks[i], stage, output)
        ]
        total = sum(numel for numel, _ in jobs)
        if jobs:
            self.listener.phase("measuring", total)
        with contextlib.closing(results(self.executor, sent_together(jobs, total))) as told:
            for found in told:
                assert isinstance(found, Measurement)
                place = tasks[found.job.task].target
                known.add(place.name, stage, output.name, found.value)
                self.listener.advance(place.name, place.numel)

    def _measure_together(self, numbers: Sequence[int], stage: int, output: Output) -> Any:
        """Return what all workers together measure over the tensors of some tasks."""
        tasks = [self.pipeline.plan.tasks[i] for i in numbers]
        measure = self.pipeline.measure(stage, output, tasks[0])
        assert measure is not None
        state = first_state(self.pipeline, tasks, stage, output, measure)
        while not isinstance(state, Measured):
            seen = blocks_seen(self.pipeline.plan, numbers, measure, state)
            self.listener.phase("measuring", sum(map(numel_of, seen)))
            # One tensor is read again at once; what comes back only after all others is in their way.
            jobs = list(self._folds(seen, stage, output, state, drop_cache=len(numbers) > 1))
            state = measure.finish(state, self._combined(measure, jobs))
        return state.value

    def _folds(
        self, seen: Sequence[TaskBlocks], stage: int, output: Output, state: Any, *, drop_cache: bool
    ) -> Iterator[Fold]:
        """Yield the jobs of a round."""
        for i, group in enumerate(in_groups(seen, self.workers)):
            names = (self.pipeline.plan.tasks[number].target.name for number, _ in group)
            yield Fold(i, tuple(group), stage, output.name, state, self.pipeline.known.of(*names), drop_cache)

    def _combined(self, measure: Measure, jobs: Sequence[Fold]) -> Any:
        """Return what the jobs of a round have found together."""
        whole: Any = None
        waiting: dict[int, Any] = {}
        combined = 0
        with contextlib.closing(results(self.executor, ((job,) for job in jobs))) as told:
            for part in told:
                assert isinstance(part, Part)
                waiting[part.number] = part.value
                # In order, and as soon as may be: they can be large.
                while combined in waiting:
                    value = waiting.pop(combined)
                    whole = measure.combine(whole, value) if combined else value
                    combined += 1
                for each in jobs[part.number].seen:
                    self.listener.advance(self.pipeline.plan.tasks[each[0]].target.name, numel_of(each))
        return whole


def results(
    executor: Executor[Sequence[Job], list[Result]], messages: Iterable[Sequence[Job]]
) -> Generator[Result, None, None]:
    """Yield what each job of each message gives, in any order; no worker is at work when this ends or is closed."""
    with contextlib.closing(executor.map(messages)) as told:
        for found in told:
            yield from found
