"""The pipeline of a block: the preparing steps, then the method; each may have a measure of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from merge_cli.kernels import GRAIN, Array
from merge_cli.methods.contract import Block, Input, Masks, Measure, MeasureOver, Params, Scope
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.blocks import unit_of
from merge_cli.plan.outputs import Output
from merge_cli.stream.records import Span, Tally
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


def sample_blocks(numel: int, wanted: int) -> list[Span]:
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
class Measurements:
    """Measured values: plain data, to be sent to other processes or kept for later.

    What a step measures holds for all merged models, what the method measures for those that agree in the parameters on
    which it depends, under the name of the first of them.

    Attributes:
        model: Over all tensors: (stage, merged model) -> value.
        tensors: Over one tensor: tensor -> (stage, merged model) -> value.
    """

    model: dict[tuple[int, str], Any] = field(default_factory=dict)
    tensors: dict[str, dict[tuple[int, str], Any]] = field(default_factory=dict)

    def copy(self) -> Measurements:
        """Return a copy that can be added to."""
        return Measurements(dict(self.model), {name: dict(found) for name, found in self.tensors.items()})

    def of(self, *tensors: str) -> Measurements:
        """Return what a job on some tensors has to know."""
        return Measurements(self.model, {name: self.tensors[name] for name in tensors if name in self.tensors})

    def add(self, tensor: str, stage: int, output: str, value: Any) -> None:
        """Take in what was measured over one tensor."""
        self.tensors.setdefault(tensor, {})[stage, output] = value


@dataclass(frozen=True)
class Pipeline:
    """The stages of a plan; stage ``len(steps)`` is the method.

    Attributes:
        plan: The plan.
        known: What has been measured.
    """

    plan: MergePlan
    known: Measurements

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
            for output in self.measured_for(stage)
            if (measure := self.measure(stage, output)) is not None and measure.over is MeasureOver.MODEL
        ]
        return over_all[-1] + 1 if over_all else 0

    def measured_for(self, stage: int, task: TensorTask | None = None) -> list[Output]:
        """Return the merged models for which a stage measures a tensor, or the whole model: no value twice."""
        if stage < self.method_stage:
            return [self.plan.variants[0]]
        if task is None:
            return [output for output in self.plan.variants if self.plan.sharing.over_model[output.name] == output.name]
        return [output for output in self.plan.variants if self.plan.sharing.first(task, output) is output]

    def measure(self, stage: int, output: Output, task: TensorTask | None = None) -> Measure | None:
        """Return the measure of a stage for a tensor; without one, for the first that is merged."""
        params = self.params(stage, task or next(iter(self.plan.merged), None), output)
        if params is None:
            return None
        if stage < self.method_stage:
            return self.plan.prepared_by[stage][0].measure(params)
        return self.plan.method.measure(params)

    def params(self, stage: int, task: TensorTask | None, output: Output) -> Params | None:
        """Return the parameters of a stage for a tensor of a merged model."""
        if stage < self.method_stage:
            return self.plan.steps[stage][1]
        return output.params_of(task) if task is not None else None

    def whole_model(self, stage: int, output: Output) -> Any:
        """Return what a stage has measured over all tensors, None where nothing."""
        first = self.plan.sharing.over_model[output.name] if stage == self.method_stage else output.name
        return self.known.model.get((stage, first))

    def _measured(self, stage: int, task: TensorTask, output: Output) -> Any:
        """Return what a stage has measured for a tensor, None where nothing."""
        value = self.whole_model(stage, output)
        if value is None and (measured := self.known.tensors.get(task.target.name)):
            first = self.plan.sharing.first(task, output) if stage == self.method_stage else output
            value = measured.get((stage, first.name))
        return value

    def inputs(
        self, worker: Worker, task: TensorTask, start: int, count: int, stage: int, needs: frozenset[Input]
    ) -> dict[Input, Array]:
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
        if steps and needs & {Input.MODELS, Input.DELTAS}:
            wanted = (needs - {Input.MODELS}) | {Input.BASE, Input.DELTAS}
        inputs = worker.inputs.load(task, start, count, wanted)
        if Input.DELTAS in wanted:
            for number, (step, params) in enumerate(steps):
                deltas = {Input.DELTAS: inputs[Input.DELTAS]}
                block = self.block(deltas, task, start, number, self.plan.variants[0], worker.tally)
                inputs[Input.DELTAS] = step.apply(block, params)
        if Input.MODELS in needs and Input.MODELS not in inputs:
            inputs[Input.MODELS] = inputs[Input.DELTAS] + inputs[Input.BASE]
        return {need: inputs[need] for need in needs}

    def block(
        self, inputs: Mapping[Input, Array], task: TensorTask, start: int, stage: int, output: Output, tally: Tally
    ) -> Block:
        """Return a block of inputs as a stage sees it, for one merged model; ``tally`` takes what is counted."""
        masks = Masks(self.plan.recipe.seed, stage, task.target.name, len(task.models), start, task.target.numel)
        posterior = tuple(prior is not None for prior in self.plan.posteriors)
        value = self._measured(stage, task, output)
        shape = task.target.shape
        grain = GRAIN if task.scope is Scope.ELEMENT else unit_of(task.scope, shape)
        return Block(inputs, masks, value, posterior, tally.counts, tally.sums, shape=shape, grain=grain)
