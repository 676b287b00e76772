"""The worker for merges that numpy and the compiled kernels can do: importing torch takes longer than many a merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merge_cli.checkpoint import DType
from merge_cli.kernels import PATTERNS, Array, count_nonfinite, from_float32, to_float32
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.stream.decode import read_rows
from merge_cli.stream.nonfinite import output_error
from merge_cli.stream.worker import Worker


def numpy_suffices(plan: MergePlan) -> bool:
    """Tell whether the cpu backend can do all of a plan."""
    return (
        plan.method.numpy
        and all(step.numpy for step, _ in plan.prepared_by)
        and all(_suits(task) for task in plan.tasks)
    )


def _suits(task: TensorTask) -> bool:
    copied = task.copied
    if copied is not None and copied.verbatim and copied.dtype is task.target.dtype and not task.target.dtype.is_float:
        return True
    return task.target.dtype.is_float and all(source.dtype.is_float for source in task.sources)


@dataclass
class NumpyWorker(Worker):
    """Blocks are numpy arrays."""

    def write(self, result: Array, task: TensorTask, start: int, outputs: Sequence[Output]) -> None:
        """Cast a result to the dtype of outputs, check it, write it."""
        dtype = outputs[0].layout.targets[task.target.name].dtype
        nbytes = len(result) * dtype.itemsize
        numbers = np.ascontiguousarray(result, dtype=np.float32)
        out = self.typed(self._raw_out[:nbytes], dtype)
        wrong = from_float32(numbers, dtype.torch_name, out)  # type: ignore[arg-type]
        if wrong and not (task.copied is not None and self.plan.allow_nonfinite):
            raise output_error(self.plan, task, outputs[0], self.reader)
        self.put(self._view_out[:nbytes], task, start, outputs)

    def copy(self, task: TensorTask, start: int, count: int) -> None:
        """Write a run of a tensor that is copied."""
        source, place = task.copied, task.target
        assert source is not None
        if not source.verbatim:
            self.write(self._load_rows("copied", [source], start, count)[0], task, start, self.plan.variants)
            return
        stored = read_rows([source], start, count, self.reader, self)
        cast = source.dtype is not place.dtype
        if source.dtype.is_float and (cast or not self.plan.allow_nonfinite):
            self._note_nonfinite(count_nonfinite(stored, source.dtype.torch_name), source)
        if cast:
            rows = self._rows_of("copied", 1, count)
            to_float32(stored, source.dtype.torch_name, rows)
            self.write(rows[0], task, start, self.plan.variants)
            return
        self.put(self._view_in[: count * source.dtype.itemsize], task, start, self.plan.variants)

    def _raw(self, nbytes: int) -> tuple[NDArray[np.uint8], memoryview]:
        buffer = np.empty(nbytes, dtype=np.uint8)
        return buffer, buffer.data

    def _from_numpy(self, numbers: NDArray[np.float32]) -> Array:
        return numbers  # type: ignore[return-value]

    def typed(self, raw: NDArray[np.uint8], dtype: DType) -> NDArray[np.generic]:
        """Return bytes of a buffer as numbers of a dtype."""
        # What is no float is copied in bytes.
        return raw.view(PATTERNS.get(dtype.torch_name, np.uint8))

    def _rows_of(self, name: str, n: int, count: int) -> Array:
        if name not in self._rows:
            self._rows[name] = np.empty(n * self._numel, dtype=np.float32)  # type: ignore[assignment]
        return self._rows[name][: n * count].reshape(n, count)
