"""Measures, as rounds of jobs over the ranges of tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from merge_cli.methods.contract import Measure, Measured
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.stream.journal import Span
from merge_cli.stream.pool import Job
from merge_cli.stream.progress import Listener
from merge_cli.stream.ranges import blocks, pieces, ranges
from merge_cli.stream.stages import Chain
from merge_cli.stream.worker import Worker

Jobs = Iterable[Job[Worker]]


@dataclass
class Round:
    """One round of a measure over some tensors: a job per range, and what follows after the last."""

    plan: MergePlan
    chain: Chain
    listener: Listener
    tasks: Sequence[TensorTask]
    stage: int
    measure: Measure
    measured: Mapping[int, Any]
    then: Callable[[Any], Jobs]
    state: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _parts: list[Any] = field(default_factory=list)
    _open: int = 0

    def jobs(self) -> list[Job[Worker]]:
        """Return a job per range, or per set of pieces where the round is content with a sample."""
        wanted = self.measure.sample(self.state)
        if wanted:
            total = sum(task.place.numel for task in self.tasks)
            parts = [(task, pieces(task.place.numel, wanted * task.place.numel // total)) for task in self.tasks]
        else:
            step = self.plan.block_numel
            whole = [(task, span) for task in self.tasks for span in ranges((0, task.place.numel), step)]
            parts = [(task, blocks(span, step)) for task, span in whole]
        if len(self.tasks) > 1:
            self.listener.phase("measuring", sum(count for _, spans in parts for _, count in spans))
        self._open = len(parts)
        return [self._job(task, spans) for task, spans in parts]

    def _job(self, task: TensorTask, spans: Sequence[Span]) -> Job[Worker]:
        def fold(worker: Worker) -> Jobs:
            chain, needs = self.chain, self.measure.needs & self.plan.needs
            params = chain.params(self.stage, task)
            part: Any = None
            for start, count in spans:
                block = chain.block(worker, task, start, count, self.stage, self.measured, needs)
                part = self.measure.fold(self.state, part, block, params)
                if len(self.tasks) > 1:
                    self.listener.advance(task.place.name, count)
                    worker.forget(task, (start, count))
            return self._finish(part)

        return fold

    def _finish(self, part: Any) -> Jobs:
        """Add a range's part; after the last one, return what follows."""
        with self._lock:
            if self._parts:
                self._parts[0] = self.measure.combine(self._parts[0], part)
            else:
                self._parts.append(part)
            self._open -= 1
            if self._open:
                return ()
        state = self.measure.finish(self.state, self._parts[0])
        if isinstance(state, Measured):
            return self.then(state.value)
        return replace(self, state=state, _lock=threading.Lock(), _parts=[]).jobs()
