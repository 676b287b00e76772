"""A worker for every device, dtype and method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge_cli.checkpoint import DType, to_torch
from merge_cli.plan import TensorTask
from merge_cli.plan.outputs import Output
from merge_cli.stream.decode import read_rows
from merge_cli.stream.nonfinite import output_error
from merge_cli.stream.worker import Worker

# Up to here numbers round to 448, the largest of float8_e4m3fn.
_MOST_F8_E4M3 = 464
_SUMMED = (torch.bfloat16, torch.float32, torch.float64)


@dataclass
class TorchWorker(Worker):
    """Blocks are torch tensors."""

    def copy(self, task: TensorTask, start: int, count: int) -> None:
        """Write a run of a tensor that is copied."""
        source = task.copied
        assert source is not None
        if source.verbatim:
            self.write(read_rows([source], start, count, self.reader, self)[0], task, start, self.plan.variants)
        else:
            self.write(self._load_rows("copied", [source], start, count)[0], task, start, self.plan.variants)

    def write(self, result: Tensor, task: TensorTask, start: int, outputs: Sequence[Output]) -> None:
        """Cast a result to the dtype of outputs, check it, write it.

        Raises:
            CheckpointError: If it is copied, and not finite where it comes from.
            VerificationError: If it is not finite.
        """
        place = outputs[0].layout.targets[task.target.name]
        nbytes = result.numel() * place.dtype.itemsize
        out = self._raw_out[:nbytes].view(to_torch(place.dtype))
        out.copy_(result.reshape(-1))
        allowed = task.copied is not None and self.plan.allow_nonfinite
        if place.dtype.is_float and not allowed and not (_is_finite(out) and _fits(result, place.dtype)):
            if task.copied is not None:
                self._note_nonfinite(int((~result.to(torch.float64).isfinite()).sum()), task.copied)
            raise output_error(self.plan, task, outputs[0], self.reader)
        self.put(self._view_out[:nbytes], task, start, outputs)

    def _raw(self, nbytes: int) -> tuple[Tensor, memoryview]:
        """Return a buffer of bytes, pinned where a GPU copies from it, and a view of it."""
        buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.device != "cpu")
        return buffer, memoryview(buffer.numpy())  # type: ignore[arg-type]

    def _from_numpy(self, numbers: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)

    def typed(self, raw: Tensor, dtype: DType) -> Tensor:
        """Return bytes of a buffer as numbers of a dtype."""
        return raw.view(to_torch(dtype))

    def _rows_of(self, name: str, n: int, count: int) -> Tensor:
        if name not in self._rows:
            self._rows[name] = torch.empty(n * self._numel, dtype=torch.float32, device=self.device)
        return self._rows[name][: n * count].view(n, count)


def _fits(values: Tensor, dtype: DType) -> bool:
    """Tell whether values are in the range of a dtype; only where torch would clamp them silently."""
    return dtype is not DType.F8_E4M3 or bool((values.to(torch.float32).abs() <= _MOST_F8_E4M3).all())


def _is_finite(values: Tensor) -> bool:
    """Tell whether all are finite: at once where their sum is; one that overflows takes a closer look."""
    # Sums of float16 overflow as soon as a few numbers are large; float8 has none.
    wide = values if values.dtype in _SUMMED else values.to(torch.float32)
    return math.isfinite(wide.sum().item()) or bool(wide.isfinite().all())
