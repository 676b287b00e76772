"""What is done to a block, in order: the preparing steps, then the method; each may have a measure of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from merge_cli.kernels import Array
from merge_cli.methods.contract import Block, Extent, Masks, Measure, Need, Params
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.stream.journal import Span
from merge_cli.stream.worker import Worker

_BLOCKS_PER_RANGE = 16
# A read of this many elements costs about twice what a read of one costs.
_SHORTEST_RUN = 4096
_RUNS = 16


def ranges(span: Span, block_numel: int) -> list[Span]:
    """Cut a run of elements, as (start, count), into what one job does."""
    return _cut(span, block_numel * _BLOCKS_PER_RANGE)


def blocks(span: Span, block_numel: int) -> list[Span]:
    """Cut a range into blocks."""
    return _cut(span, block_numel)


def pieces(numel: int, wanted: int) -> list[Span]:
    """Spread about ``wanted`` elements evenly over a tensor, in a few runs."""
    run = max(_SHORTEST_RUN, wanted // _RUNS)
    runs = max(1, wanted // run)
    if numel <= runs * run:
        return _cut((0, numel), run)
    return [(numel * number // runs, run) for number in range(runs)]


def _cut(span: Span, step: int) -> list[Span]:
    start, count = span
    return [(start + offset, min(step, count - offset)) for offset in range(0, count, step)]


@dataclass(frozen=True)
class Chain:
    """The stages of a plan; stage ``len(steps)`` is the method.

    Attributes:
        plan: The plan.
        whole: Measured over all tensors: stage -> value.
        single: Measured over one tensor: (stage, tensor) -> value, as long as it is needed.
    """

    plan: MergePlan
    whole: dict[int, Any]
    single: dict[tuple[int, str], Any]

    @property
    def method_stage(self) -> int:
        """The number of the method's stage."""
        return len(self.plan.steps)

    @cached_property
    def first_streamed(self) -> int:
        """The first stage that no measure over all tensors depends on."""
        over_all = [
            stage
            for stage in range(self.method_stage + 1)
            if (measure := self.measure(stage)) is not None and measure.over is Extent.MODEL
        ]
        return over_all[-1] + 1 if over_all else 0

    def measure(self, stage: int, task: TensorTask | None = None) -> Measure | None:
        """Return the measure of a stage for a tensor; without one, for the first that is merged."""
        params = self.params(stage, task or next(iter(self.plan.merged), None))
        if params is None:
            return None
        if stage < self.method_stage:
            return self.plan.prepared_by[stage][0].measure(params)
        return self.plan.method.measure(params)

    def params(self, stage: int, task: TensorTask | None) -> Params | None:
        """Return the parameters of a stage for a tensor."""
        if stage < self.method_stage:
            return self.plan.steps[stage][1]
        return task.params if task is not None else None

    def block(
        self,
        worker: Worker,
        task: TensorTask,
        start: int,
        count: int,
        stage: int,
        needs: frozenset[Need],
    ) -> Block:
        """Read a block and take it through the steps before ``stage``.

        Args:
            worker: Whose buffers are used.
            task: The tensor.
            start: First element.
            count: Number of elements.
            stage: What the block is for.
            needs: What is read of the block.
        """
        steps = self.plan.prepared_by[:stage]
        wanted = needs
        if steps and needs & {Need.MODELS, Need.DELTAS}:
            wanted = (needs - {Need.MODELS}) | {Need.BASE, Need.DELTAS}
        inputs = worker.load(task, start, count, wanted)
        if Need.DELTAS in wanted:
            for number, (step, params) in enumerate(steps):
                block = self._made({Need.DELTAS: inputs[Need.DELTAS]}, worker, task, start, number)
                inputs[Need.DELTAS] = step.apply(block, params)
        if Need.MODELS in needs and Need.MODELS not in inputs:
            inputs[Need.MODELS] = inputs[Need.DELTAS] + inputs[Need.BASE]
        return self._made({need: inputs[need] for need in needs}, worker, task, start, stage)

    def _made(self, inputs: Mapping[Need, Array], worker: Worker, task: TensorTask, start: int, stage: int) -> Block:
        name = task.place.name
        masks = Masks(self.plan.recipe.seed, stage, name, len(task.models), start, task.place.numel)
        value = self.whole.get(stage, self.single.get((stage, name)))
        posterior = tuple(prior is not None for prior in self.plan.posteriors)
        return Block(inputs, masks, value, posterior, worker.tally.counts, worker.tally.sums)
