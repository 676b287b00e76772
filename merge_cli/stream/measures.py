"""Measures, in rounds over the blocks of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from merge_cli.methods.contract import Measure, Measured, Totals
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.stream.journal import Span
from merge_cli.stream.pipeline import Pipeline, blocks, pieces, ranges
from merge_cli.stream.worker import Worker

Share = tuple[TensorTask, Sequence[Span]]


def first_state(pipeline: Pipeline, tasks: Sequence[TensorTask], stage: int, output: Output, measure: Measure) -> Any:
    """Return a measure's state before its first round over some tensors, or its value where it needs none."""
    totals = Totals(len(tasks[0].models), sum(task.target.numel for task in tasks))
    return measure.start(totals, pipeline.params(stage, tasks[0], output))


def shares(tasks: Sequence[TensorTask], plan: MergePlan, measure: Measure, state: Any) -> list[Share]:
    """Return what a round sees, cut into what one job sees: a range, or of each tensor the pieces of a sample."""
    wanted, total = measure.sample(state), sum(task.target.numel for task in tasks)
    if wanted:
        return [(task, pieces(task.target.numel, wanted * task.target.numel // total)) for task in tasks]
    whole = [(task, span) for task in tasks for span in ranges((0, task.target.numel), plan.block_of(task))]
    return [(task, blocks(span, plan.block_of(task))) for task, span in whole]


def fold(
    pipeline: Pipeline,
    worker: Worker,
    stage: int,
    output: Output,
    measure: Measure,
    state: Any,
    share: Share,
    part: Any,
) -> Any:
    """Add to a part what one share contributes to a round."""
    task, spans = share
    needs, params = measure.needs & pipeline.plan.needs, pipeline.params(stage, task, output)
    for start, count in spans:
        inputs = pipeline.inputs(worker, task, start, count, stage, needs)
        block = pipeline.block(inputs, task, start, stage, output, worker.tally)
        part = measure.fold(state, part, block, params)
    return part


def combined(measure: Measure, parts: Iterable[Any]) -> Any:
    """Return what several parts of a round have found together."""
    whole: Any = None
    for part in parts:
        whole = part if whole is None else measure.combine(whole, part) if part is not None else whole
    return whole


def measure_alone(pipeline: Pipeline, worker: Worker, task: TensorTask, stage: int, output: Output) -> Any:
    """Measure one tensor on one worker, from the first round to the last; return the value."""
    measure = pipeline.measure(stage, output, task)
    assert measure is not None
    state = first_state(pipeline, [task], stage, output, measure)
    while not isinstance(state, Measured):
        part: Any = None
        for share in shares([task], pipeline.plan, measure, state):
            part = fold(pipeline, worker, stage, output, measure, state, share, part)
        state = measure.finish(state, part)
    return state.value
