"""Jobs: what a worker is asked to do, as plain data that may be sent anywhere.

Tasks are given by their numbers in the plan, merged models by their names. A job holds what it must know of what has
been measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge_cli.kernels import Array, higher
from merge_cli.methods.contract import Input, Params
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.stream.measures import TaskBlocks, fold, measure_alone
from merge_cli.stream.pipeline import Measurements, Pipeline, blocks
from merge_cli.stream.records import Record, Span
from merge_cli.stream.worker import Worker

# Jobs are sent together up to this part of the work, and up to so many elements: each message takes some time.
_MOST_MESSAGES = 1024
_ELEMENTS_TOGETHER = 2**22


@dataclass(frozen=True)
class CopyRange:
    """Copy a range of a tensor."""

    task: int
    span: Span


@dataclass(frozen=True)
class MergeRange:
    """Merge a range of a tensor."""

    task: int
    span: Span
    known: Measurements


@dataclass(frozen=True)
class MergeTensor:
    """Measure a tensor for some stages and merged models, then merge some ranges of it."""

    task: int
    spans: tuple[Span, ...]
    stages: tuple[tuple[int, str], ...]
    known: Measurements


@dataclass(frozen=True)
class MeasureTensor:
    """Measure a tensor for one stage and merged model."""

    task: int
    stage: int
    output: str
    known: Measurements


@dataclass(frozen=True)
class Fold:
    """Fold a part of one round of a measure.

    Attributes:
        number: Which part of the round it is.
        seen: What is seen.
        stage: The stage that measures.
        output: The merged model.
        state: The state of the measure.
        known: What has been measured for earlier stages.
        drop_cache: Whether the inputs will not be read again soon.
    """

    number: int
    seen: tuple[TaskBlocks, ...]
    stage: int
    output: str
    state: Any
    known: Measurements
    drop_cache: bool


@dataclass(frozen=True)
class Measurement:
    """Result of a :class:`MeasureTensor`."""

    job: MeasureTensor
    value: Any


@dataclass(frozen=True)
class Part:
    """Result of the :class:`Fold` of this number."""

    number: int
    value: Any


Job = CopyRange | MergeRange | MergeTensor | MeasureTensor | Fold
Result = Record | Measurement | Part


def run_jobs(jobs: Sequence[Job], worker: Worker) -> list[Result]:
    """Run jobs that were sent together."""
    return [result for job in jobs for result in run_job(job, worker)]


def run_job(job: Job, worker: Worker) -> Iterator[Result]:
    """Run a job and yield what it gives: a record for each range, a measurement, or a part of one."""
    plan = worker.plan
    match job:
        case CopyRange(number, span):
            yield _copy(worker, plan.tasks[number], span)
        case MergeRange(number, span, known):
            yield _merge(Pipeline(plan, known), worker, plan.tasks[number], span)
        case MergeTensor(number, spans, stages, known):
            yield from _measure_and_merge(Pipeline(plan, known), worker, number, spans, stages)
        case MeasureTensor(number, stage, output, known):
            value = measure_alone(Pipeline(plan, known), worker, number, stage, _merged_model(plan, output))
            yield Measurement(job, value)
        case Fold():
            yield _fold(job, worker)


def sent_together(jobs: Iterable[tuple[int, Job]], total: int) -> Iterator[tuple[Job, ...]]:
    """Put small jobs, each behind its number of elements, together into messages; ``total`` elements are in all."""
    most, size = min(total // _MOST_MESSAGES, _ELEMENTS_TOGETHER), 0
    group: list[Job] = []
    for numel, job in jobs:
        if group and size + numel > most:
            yield tuple(group)
            group, size = [], 0
        group.append(job)
        size += numel
    if group:
        yield tuple(group)


def _merged_model(plan: MergePlan, name: str) -> Output:
    return next(output for output in plan.variants if output.name == name)


def _fold(job: Fold, worker: Worker) -> Part:
    pipeline, output = Pipeline(worker.plan, job.known), _merged_model(worker.plan, job.output)
    part: Any = None
    for each in job.seen:
        part = fold(pipeline, worker, job.stage, output, job.state, each, part)
        number, spans = each
        for span in spans if job.drop_cache else ():
            worker.drop_cache(worker.plan.tasks[number], span)
    worker.has_measured = True
    return Part(job.number, part)


def _measure_and_merge(
    pipeline: Pipeline, worker: Worker, number: int, spans: Sequence[Span], stages: Sequence[tuple[int, str]]
) -> Iterator[Record]:
    task = pipeline.plan.tasks[number]
    name, known = task.target.name, pipeline.known
    # Of its own: what is measured here is forgotten with the job.
    pipeline = Pipeline(pipeline.plan, Measurements(known.model, {name: dict(known.tensors.get(name, {}))}))
    for stage, output in stages:
        value = measure_alone(pipeline, worker, number, stage, _merged_model(pipeline.plan, output))
        pipeline.known.add(name, stage, output, value)
    for span in spans:
        yield _merge(pipeline, worker, task, span)


def _copy(worker: Worker, task: TensorTask, span: Span) -> Record:
    worker.read_ahead(task, span)
    worker.begin()
    for start, count in blocks(span, worker.plan.block_of(task)):
        worker.copy(task, start, count)
    worker.drop_cache(task, span, worker.followed)
    return worker.record(task, span)


def _merge(pipeline: Pipeline, worker: Worker, task: TensorTask, span: Span) -> Record:
    plan = pipeline.plan
    each = [(output, output.params_of(task)) for output in plan.variants]
    needs = [plan.method.needs(params, plan.needs) for _, params in each]
    worker.read_ahead(task, span)
    worker.begin()
    for start, count in blocks(span, plan.block_of(task)):
        inputs = pipeline.inputs(worker, task, start, count, pipeline.method_stage, frozenset().union(*needs))
        least = worker.inputs.least(task, start, count)
        for (output, params), own in zip(each, needs, strict=True):
            _merge_block(pipeline, worker, task, start, {need: inputs[need] for need in own}, least, output, params)
    worker.drop_cache(task, span, worker.followed)
    return worker.record(task, span)


def _merge_block(
    pipeline: Pipeline,
    worker: Worker,
    task: TensorTask,
    start: int,
    inputs: Mapping[Input, Array],
    least: Array | None,
    output: Output,
    params: Params | None,
) -> None:
    """Merge a block for one merged model, and write it and what is emitted beside it."""
    block = pipeline.block(inputs, task, start, pipeline.method_stage, output, worker.tally_of(output))
    result = pipeline.plan.method.merge(block, params).reshape(-1)
    worker.write(result if least is None else higher(result, least), task, start, [output])
    for what, values in block.emitted.items():
        if (output.name, what) in pipeline.plan.emitted:
            worker.write(values, task, start, [pipeline.plan.emitted[output.name, what]])
