"""Measures, in rounds over the blocks of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from merge_cli.methods.contract import Measure, Measured, Totals
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.stream.pipeline import Pipeline, blocks, ranges, sample_blocks
from merge_cli.stream.records import Span
from merge_cli.stream.worker import Worker

# The number of a task, and the blocks that are seen of its tensor.
TaskBlocks = tuple[int, Sequence[Span]]

# Jobs of a round are at most, and for each worker about, so small a part of it. Few, because what each finds may be
# large and must be combined; smaller ones last, so that workers end together.
_LARGEST, _SMALLEST = 16, 16


def first_state(pipeline: Pipeline, tasks: Sequence[TensorTask], stage: int, output: Output, measure: Measure) -> Any:
    """Return a measure's state before its first round over some tensors, or its value where it needs none."""
    totals = Totals(len(tasks[0].models), sum(task.target.numel for task in tasks))
    return measure.start(totals, pipeline.params(stage, tasks[0], output))


def blocks_seen(plan: MergePlan, numbers: Sequence[int], measure: Measure, state: Any) -> list[TaskBlocks]:
    """Return what a round sees of the tensors of some tasks: all of them, or a sample."""
    tasks = [(number, plan.tasks[number]) for number in numbers]
    wanted, total = measure.sample(state), sum(task.target.numel for _, task in tasks)
    if wanted:
        return [
            (number, sample_blocks(task.target.numel, wanted * task.target.numel // total)) for number, task in tasks
        ]
    whole = [(number, span) for number, task in tasks for span in ranges((0, task.target.numel), plan.block_of(task))]
    return [(number, blocks(span, plan.block_of(plan.tasks[number]))) for number, span in whole]


def in_groups(seen: Sequence[TaskBlocks], workers: int) -> Iterator[list[TaskBlocks]]:
    """Yield what a round sees in groups, one for each job."""
    total = left = sum(map(numel_of, seen))
    group: list[TaskBlocks] = []
    size = 0
    for each in seen:
        group.append(each)
        size += numel_of(each)
        if size >= max(min(left / (3 * workers), total / _LARGEST), total / (_SMALLEST * workers)):
            yield group
            group, left, size = [], left - size, 0
    if group:
        yield group


def numel_of(blocks: TaskBlocks) -> int:
    """Return how many elements blocks have."""
    return sum(count for _, count in blocks[1])


def fold(
    pipeline: Pipeline, worker: Worker, stage: int, output: Output, state: Any, seen: TaskBlocks, part: Any
) -> Any:
    """Add to a part what some blocks contribute to a round."""
    task = pipeline.plan.tasks[seen[0]]
    measure = pipeline.measure(stage, output, task)
    assert measure is not None
    needs, params = measure.needs & pipeline.plan.needs, pipeline.params(stage, task, output)
    for start, count in seen[1]:
        inputs = pipeline.inputs(worker, task, start, count, stage, needs)
        block = pipeline.block(inputs, task, start, stage, output, worker.tally)
        part = measure.fold(state, part, block, params)
    return part


def measure_alone(pipeline: Pipeline, worker: Worker, number: int, stage: int, output: Output) -> Any:
    """Measure the tensor of one task on one worker, from the first round to the last; return the value."""
    task = pipeline.plan.tasks[number]
    measure = pipeline.measure(stage, output, task)
    assert measure is not None
    state = first_state(pipeline, [task], stage, output, measure)
    while not isinstance(state, Measured):
        part: Any = None
        for each in blocks_seen(pipeline.plan, [number], measure, state):
            part = fold(pipeline, worker, stage, output, state, each, part)
        state = measure.finish(state, part)
    return state.value
