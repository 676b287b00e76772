"""The inputs of a block: read, decoded and combined in buffers that are reused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from merge_cli.checkpoint import Reader, Source
from merge_cli.errors import CheckpointError
from merge_cli.kernels import Array, Backend, lower
from merge_cli.methods.contract import COMPANIONS, Companion, Input
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.buffers import is_variance
from merge_cli.stream.decode import decode_rows, read_rows, read_whole


class BlockInputs:
    """Reads blocks of tensors; what is returned is overwritten by the next call.

    Args:
        plan: The plan, whose largest block decides the buffers.
        reader: Where the bytes come from.
        backend: Where the numbers go.
        note: Is told how many numbers of a source were not finite, where any were.
    """

    def __init__(self, plan: MergePlan, reader: Reader, backend: Backend, note: Callable[[int, Source], None]) -> None:
        self._plan, self._reader, self._backend, self._note = plan, reader, backend, note
        self._numel = max(plan.block_of(task) for task in plan.tasks)
        self._raw = backend.staging(max(plan.block_of(task) * _widest(task) for task in plan.tasks))
        self._rows: dict[str, Array] = {}
        self._whole: dict[str, tuple[tuple[Source, ...], Array]] = {}

    def load(self, task: TensorTask, start: int, count: int, needs: frozenset[str]) -> dict[str, Array]:
        """Read what is needed of elements ``start`` to ``start + count``; deltas are computed, curvature is scaled.

        Raises:
            CheckpointError: If an input is not finite, a Fisher is negative, or a file cannot be read.
        """
        inputs: dict[str, Array] = {}
        if needs & {Input.BASE, Input.DELTAS}:
            assert task.base is not None
            base = self.rows("base", [task.base], start, count)[0]
            if Input.BASE in needs:
                inputs[Input.BASE] = base
        if Input.MODELS in needs:
            models = inputs[Input.MODELS] = self.rows("models", task.models, start, count)
            if Input.DELTAS in needs:
                inputs[Input.DELTAS] = models - base
        elif Input.DELTAS in needs:
            inputs[Input.DELTAS] = self.rows("models", task.models, start, count, less=base)
        for each in COMPANIONS:
            if needs & (each.inputs | each.base_inputs):
                inputs |= self._companion(each, task, start, count, needs)
        return inputs

    def least(self, task: TensorTask, start: int, count: int) -> Array | None:
        """Return what a run of variances is raised to: the smallest of the base's and the models'; None for all else.

        A sum of task vectors may take a variance below zero, whose root is no number, or so close to it that all
        activations explode. Between the inputs nothing is changed.
        """
        if not is_variance(task.target.name):
            return None
        lowest = None
        for tensor in (task.base, *task.models):
            if tensor is not None:
                row = self.rows("copied", [tensor], start, count)[0]
                # Added to zero, because the next row takes the place of this one.
                lowest = row + 0 if lowest is None else lower(lowest, row)
        return lowest

    def rows(self, name: str, sources: Sequence[Source], start: int, count: int, less: Array | None = None) -> Array:
        """Read one run of each tensor, less what is given, into the float32 buffer of a name.

        Args:
            name: Of the buffer.
            sources: The tensors.
            start: First element.
            count: How many.
            less: What is subtracted from each, shape ``(count,)``; None for nothing.

        Returns:
            Shape ``(len(sources), count)``.

        Raises:
            CheckpointError: If a number is not finite, or a file cannot be read.
        """
        if name not in self._rows:
            self._rows[name] = self._backend.empty((len(sources) * self._numel,))
        rows = self._rows[name][: len(sources) * count].reshape(len(sources), count)
        wrong = decode_rows(sources, start, rows, reader=self._reader, raw=self._raw, backend=self._backend, less=less)
        for source, several in zip(sources, wrong, strict=True):
            if several:
                self._note(several, source)
        return rows

    def stored(self, source: Source, start: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """Read a run of a verbatim tensor as it is stored, shape ``(1, count)``.

        Raises:
            CheckpointError: If a file cannot be read.
        """
        return read_rows([source], start, count, self._reader, self._raw)

    def _companion(
        self, each: Companion, task: TensorTask, start: int, count: int, needs: frozenset[str]
    ) -> dict[str, Array]:
        """Read what a companion gives; this is the one place where a mean Fisher becomes a curvature, H = N·F."""
        inputs: dict[str, Array] = {}
        if needs & each.base_inputs:
            sources = [task.base_companions[each.kind]]
            row = self._companion_rows(each, each.base_key, sources, start, count)[0]
            if each.base in needs:
                inputs[each.base] = row
            if each.base_scaled in needs:
                inputs[each.base_scaled] = row * self._plan.base_scale
        if needs & each.inputs:
            rows = self._companion_rows(each, each.kind, task.companions[each.kind], start, count)
            if each.rows in needs:
                inputs[each.rows] = rows
            if each.scaled in needs:
                # Scaled in place, unless the method reads both.
                scaled = rows + 0 if each.rows in needs else rows
                inputs[each.scaled] = self._scaled(scaled, inputs.get(each.base_scaled or ""))
        return inputs

    def _companion_rows(self, each: Companion, name: str, sources: Sequence[Source], start: int, count: int) -> Array:
        rows = self._all_of(name, sources) if each.whole else self.rows(name, sources, start, count)
        for row, source in zip(rows, sources, strict=True):
            if each.least is not None and float(row.min()) < each.least:
                raise CheckpointError(
                    f"'{source.name}' in {source.file} has negative entries, which no Fisher diagonal has",
                    hint="is it a checkpoint, or a gradient?",
                )
        return rows

    def _scaled(self, rows: Array, base: Array | None) -> Array:
        """Multiply rows with the numbers of examples, and take the base's part from each posterior precision.

        What is left of a posterior precision is the curvature of what was merged.
        """
        for row, scale in zip(rows, self._plan.scales, strict=True):
            row *= scale
        for row, prior in zip(rows, self._plan.posteriors, strict=False):
            if prior is not None:
                row -= prior
                if base is not None:
                    row -= base
        return rows

    def _all_of(self, name: str, sources: Sequence[Source]) -> Array:
        """Return all of several tensors, kept until others are asked for by the same name."""
        if name not in self._whole or self._whole[name][0] != tuple(sources):
            numbers = np.stack([read_whole(source, self._reader) for source in sources])
            for row, source in zip(numbers, sources, strict=True):
                if wrong := int((~np.isfinite(row)).sum()):
                    self._note(wrong, source)
            self._whole[name] = tuple(sources), self._backend.from_numpy(numbers)
        return self._whole[name][1]


def _widest(task: TensorTask) -> int:
    """Return the bytes per element of the largest set of tensors that is read at a time."""
    if task.copied is not None:
        return task.copied.itemsize
    single = [tensor for tensor in (task.base, *task.base_companions.values()) if tensor is not None]
    sets = (task.models, single, *task.companions.values())
    return max(sum(source.itemsize for source in sources) for sources in sets)
