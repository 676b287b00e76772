"""A worker for every device, dtype and method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_cli.checkpoint import DType, Source, to_torch
from merge_cli.errors import CheckpointError
from merge_cli.methods.contract import Input
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

    def load(self, task: TensorTask, start: int, count: int, needs: frozenset[Input]) -> dict[Input, Tensor]:
        """Read what any method may need, Fishers and gradients too."""
        inputs = super().load(task, start, count, needs) | self._load_fishers(task, start, count, needs)
        if Input.GRADIENTS in needs:
            inputs[Input.GRADIENTS] = self._load_rows("gradients", task.gradients, start, count)
        return inputs

    def _load_fishers(self, task: TensorTask, start: int, count: int, needs: frozenset[Input]) -> dict[Input, Tensor]:
        """Read Fishers; this is the one place where a mean Fisher becomes a curvature, H = N·F."""
        inputs: dict[Input, Tensor] = {}
        if needs & {Input.BASE_FISHER, Input.BASE_CURVATURE}:
            assert task.base_fisher is not None
            fisher = self._load_rows("base_fisher", [task.base_fisher], start, count)
            _check_not_negative(fisher, [task.base_fisher])
            if Input.BASE_FISHER in needs:
                inputs[Input.BASE_FISHER] = fisher[0]
            if Input.BASE_CURVATURE in needs:
                inputs[Input.BASE_CURVATURE] = fisher[0] * self.plan.base_scale
        if needs & {Input.FISHER, Input.CURVATURE}:
            fishers = self._load_rows("fisher", task.fishers, start, count)
            _check_not_negative(fishers, task.fishers)
            if Input.FISHER in needs:
                inputs[Input.FISHER] = fishers
            if Input.CURVATURE in needs:
                scales = torch.tensor(self.plan.scales, dtype=torch.float32, device=self.device)[:, None]
                curvature = fishers * scales if Input.FISHER in needs else fishers.mul_(scales)
                inputs[Input.CURVATURE] = self._less_prior(curvature, inputs.get(Input.BASE_CURVATURE))
        return inputs

    def _less_prior(self, curvature: Tensor, base: Tensor | None) -> Tensor:
        """Take from each posterior precision what is the base's, so that the curvature of what was merged is left."""
        for row, prior in zip(curvature, self.plan.posteriors, strict=False):
            if prior is not None:
                row.sub_(prior)
                if base is not None:
                    row.sub_(base)
        return curvature

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

    def typed(self, raw: Tensor, dtype: DType) -> Tensor:
        """Return bytes of a buffer as numbers of a dtype."""
        return raw.view(to_torch(dtype))

    def _rows_of(self, name: str, n: int, count: int) -> Tensor:
        if name not in self._rows:
            self._rows[name] = torch.empty(n * self._numel, dtype=torch.float32, device=self.device)
        return self._rows[name][: n * count].view(n, count)


def _fits(values: Tensor, dtype: DType) -> bool:
    """Whether values are in the range of a dtype; only where torch would give its largest number without a word."""
    return dtype is not DType.F8_E4M3 or bool((values.to(torch.float32).abs() <= _MOST_F8_E4M3).all())


def _is_finite(values: Tensor) -> bool:
    """Whether all are finite: at once where their sum is; one that overflows takes a closer look."""
    # Sums of float16 overflow as soon as a few numbers are large; float8 has none.
    wide = values if values.dtype in _SUMMED else values.to(torch.float32)
    return math.isfinite(wide.sum().item()) or bool(wide.isfinite().all())


def _check_not_negative(rows: Tensor, tensors: Sequence[Source]) -> None:
    for row, tensor in zip(rows, tensors, strict=True):
        if row.min().item() < 0:
            raise CheckpointError(
                f"'{tensor.name}' in {tensor.file} has negative entries, which no Fisher diagonal has",
                hint="is it a checkpoint, or a gradient?",
            )
