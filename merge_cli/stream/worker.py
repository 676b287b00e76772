"""One worker's buffers: a block's inputs in float32, and its result on the way to disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from merge_cli.checkpoint import DType, Reader, StoredTensor, to_torch
from merge_cli.errors import CheckpointError, VerificationError
from merge_cli.kernels import widen
from merge_cli.methods.contract import Need
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.stream.journal import Span, Tally

_WIDEST = 8
_READ_AHEAD = 2**16
# Up to here numbers round to 448, the largest of float8_e4m3fn.
_MOST_F8_E4M3 = 464
_SUMMED = (torch.bfloat16, torch.float32, torch.float64)


class Sink(Protocol):
    """Where results go: :class:`~merge_cli.checkpoint.ShardWriter`, or nowhere."""

    def write(self, view: memoryview, place: StoredTensor, start: int) -> None:
        """Take the bytes of a tensor from element ``start``."""

    def close(self) -> None:
        """Close what is open."""


class Discard:
    """Takes results and keeps nothing, for runs that only measure."""

    def write(self, view: memoryview, place: StoredTensor, start: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass
class Worker:
    """Reads blocks into buffers that are reused, and writes results.

    What :meth:`load` returns is overwritten by the next call. ``tally`` is that of the range under way.
    """

    plan: MergePlan
    reader: Reader
    writer: Sink
    device: torch.device
    precision_writer: Sink | None = None
    drops: bool = False
    tally: Tally = field(default_factory=Tally)
    _rows: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Allocate the raw buffers: for a block of every model as it is stored, and for one of the output."""
        self._numel = min(self.plan.block_numel, max(task.place.numel for task in self.plan.tasks))
        stored = (sum(tensor.dtype.itemsize for tensor in _longest(task)) for task in self.plan.tasks)
        self._raw_in, self._view_in = self._raw(self._numel * max(stored))
        self._raw_out, self._view_out = self._raw(self._numel * _WIDEST)

    def close(self) -> None:
        """Close the sinks, so that what a system only then says of what was written is heard."""
        for sink in (self.writer, self.precision_writer):
            if sink is not None:
                sink.close()

    def _raw(self, nbytes: int) -> tuple[Tensor, memoryview]:
        """Return a buffer of bytes, pinned where a GPU copies from it, and a view of it."""
        buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return buffer, memoryview(buffer.numpy())  # type: ignore[arg-type]

    def expect(self, task: TensorTask, span: Span) -> None:
        """Have the system read ahead what is needed for a range; of a small one it does anyway."""
        if span[1] >= _READ_AHEAD:
            for source in task.sources:
                self.reader.expect(source, *span)

    def forget(self, task: TensorTask, span: Span) -> None:
        """Let the system drop a range's inputs, where all files together would crowd out everyone else's."""
        if self.drops:
            for source in task.sources:
                self.reader.forget(source, *span)

    def load(self, task: TensorTask, start: int, count: int, needs: frozenset[Need]) -> dict[Need, Tensor]:
        """Read what is needed of elements ``start`` to ``start + count``; deltas are computed, curvature is scaled.

        Raises:
            CheckpointError: If an input is not finite, a Fisher is negative, or a file cannot be read.
        """
        inputs: dict[Need, Tensor] = {}
        if needs & {Need.BASE, Need.DELTAS}:
            assert task.base is not None
            base = self._load_rows("base", [task.base], start, count)[0]
            if Need.BASE in needs:
                inputs[Need.BASE] = base
        if Need.MODELS in needs:
            models = inputs[Need.MODELS] = self._load_rows("models", task.models, start, count)
            if Need.DELTAS in needs:
                inputs[Need.DELTAS] = models - base
        elif Need.DELTAS in needs:
            inputs[Need.DELTAS] = self._load_rows("models", task.models, start, count, less=base)
        inputs |= self._load_fishers(task, start, count, needs)
        if Need.GRADIENTS in needs:
            inputs[Need.GRADIENTS] = self._load_rows("gradients", task.gradients, start, count)
        return inputs

    def _load_fishers(self, task: TensorTask, start: int, count: int, needs: frozenset[Need]) -> dict[Need, Tensor]:
        """Read Fishers; this is the one place where a mean Fisher becomes a curvature, H = N·F."""
        inputs: dict[Need, Tensor] = {}
        if needs & {Need.BASE_FISHER, Need.BASE_CURVATURE}:
            assert task.base_fisher is not None
            fisher = self._load_rows("base_fisher", [task.base_fisher], start, count)
            _check_not_negative(fisher, [task.base_fisher])
            if Need.BASE_FISHER in needs:
                inputs[Need.BASE_FISHER] = fisher[0]
            if Need.BASE_CURVATURE in needs:
                inputs[Need.BASE_CURVATURE] = fisher[0] * self.plan.base_scale
        if needs & {Need.FISHER, Need.CURVATURE}:
            fishers = self._load_rows("fisher", task.fishers, start, count)
            _check_not_negative(fishers, task.fishers)
            if Need.FISHER in needs:
                inputs[Need.FISHER] = fishers
            if Need.CURVATURE in needs:
                scales = torch.tensor(self.plan.scales, dtype=torch.float32, device=self.device)[:, None]
                curvature = fishers * scales if Need.FISHER in needs else fishers.mul_(scales)
                inputs[Need.CURVATURE] = self._less_prior(curvature, inputs.get(Need.BASE_CURVATURE))
        return inputs

    def _less_prior(self, curvature: Tensor, base: Tensor | None) -> Tensor:
        """Take from each posterior precision what is the base's, so that the curvature of what was merged is left."""
        for row, prior in zip(curvature, self.plan.posteriors, strict=False):
            if prior is not None:
                row.sub_(prior)
                if base is not None:
                    row.sub_(base)
        return curvature

    def _load_rows(
        self, name: str, tensors: Sequence[StoredTensor], start: int, count: int, less: Tensor | None = None
    ) -> Tensor:
        """Read one run of each tensor, less what is given, into rows of a float32 buffer: ``(len(tensors), count)``."""
        if name not in self._rows:
            self._rows[name] = torch.empty(len(tensors) * self._numel, dtype=torch.float32, device=self.device)
        rows = self._rows[name][: len(tensors) * count].view(len(tensors), count)
        if len({tensor.dtype for tensor in tensors}) == 1:
            wrong = self._widen(tensors, rows, start, less)
        else:
            each = zip(tensors, rows, strict=True)
            wrong = [self._widen([tensor], row[None], start, less)[0] for tensor, row in each]
        for tensor, several in zip(tensors, wrong, strict=True):
            self._note_nonfinite(several, tensor)
        return rows

    def _widen(self, tensors: Sequence[StoredTensor], rows: Tensor, start: int, less: Tensor | None) -> list[int]:
        """Read tensors of one dtype into rows, and return how many numbers of each are not finite."""
        if tensors[0].dtype is not DType.F32 or rows.device.type != "cpu":
            return widen(self._read_rows(tensors, start, rows.shape[1]), rows, less)
        # Already as they are wanted: read in place.
        for row, tensor in zip(rows, tensors, strict=True):
            self.reader.read_into(memoryview(row.numpy()).cast("B"), tensor, start)
        return widen(rows, rows, less)

    def _read_rows(self, tensors: Sequence[StoredTensor], start: int, count: int) -> Tensor:
        """Read one run of tensors of one dtype, as they are stored, into rows of the raw buffer."""
        dtype = tensors[0].dtype
        nbytes = count * dtype.itemsize
        for i, tensor in enumerate(tensors):
            self.reader.read_into(self._view_in[i * nbytes : (i + 1) * nbytes], tensor, start)
        return self._raw_in[: len(tensors) * nbytes].view(to_torch(dtype)).view(len(tensors), count)

    def read(self, tensor: StoredTensor, start: int, count: int) -> Tensor:
        """Read a run of a tensor as it is stored, on the CPU; overwritten by the next call."""
        return self._read_rows([tensor], start, count)[0]

    def write_precision(self, precision: Tensor, task: TensorTask, start: int) -> None:
        """Write a run of the posterior precision."""
        if self.precision_writer is not None and self.plan.precision is not None:
            row = precision.to("cpu", torch.float32).contiguous()
            place = self.plan.precision.places[task.place.name]
            self.precision_writer.write(memoryview(row.numpy()).cast("B"), place, start)  # type: ignore[arg-type]

    def _note_nonfinite(self, wrong: int, tensor: StoredTensor) -> None:
        """Count numbers that are not finite, where they are allowed."""
        if not wrong:
            return
        if not self.plan.allow_nonfinite:
            raise CheckpointError(
                f"'{tensor.name}' in {tensor.file} holds NaN or infinity",
                hint="the checkpoint is damaged or training diverged; --allow-nonfinite goes on all the same",
            )
        self.tally.counts["nonfinite"] += wrong

    def write(self, result: Tensor, task: TensorTask, start: int) -> None:
        """Cast a result to the output dtype, check it, write it.

        Raises:
            CheckpointError: If it is copied, and not finite where it comes from.
            VerificationError: If it is not finite.
        """
        place = task.place
        nbytes = result.numel() * place.dtype.itemsize
        out = self._raw_out[:nbytes].view(to_torch(place.dtype))
        out.copy_(result.reshape(-1))
        allowed = task.copied is not None and self.plan.allow_nonfinite
        if place.dtype.is_float and not allowed and not (_is_finite(out) and _fits(result, place.dtype)):
            if task.copied is not None:
                self._note_nonfinite(int((~result.to(torch.float64).isfinite()).sum()), task.copied)
            raise self._not_finite(place)
        self.writer.write(self._view_out[:nbytes], place, start)

    def _not_finite(self, place: StoredTensor) -> VerificationError:
        if self.tally.counts["nonfinite"]:
            why = "as did an input that --allow-nonfinite let through"
            hint = "leave such tensors unmerged with `exclude:`, or mend the checkpoint"
        else:
            why = "though its inputs are finite"
            hint = f"{place.dtype.torch_name} may be too narrow for it; choose a wider out_dtype, or smaller weights"
        return VerificationError(f"'{place.name}' of the output holds NaN or infinity, {why}", hint=hint)


def _fits(values: Tensor, dtype: DType) -> bool:
    """Whether values are in the range of a dtype; only where torch would give its largest number without a word."""
    return dtype is not DType.F8_E4M3 or bool((values.to(torch.float32).abs() <= _MOST_F8_E4M3).all())


def _longest(task: TensorTask) -> Sequence[StoredTensor]:
    """Return the largest set of tensors that is read at a time."""
    if task.copied is not None:
        return (task.copied,)
    single = [tensor for tensor in (task.base, task.base_fisher) if tensor is not None]
    sets = (task.models, task.fishers, task.gradients, single)
    return max(sets, key=lambda tensors: sum(tensor.dtype.itemsize for tensor in tensors))


def _is_finite(values: Tensor) -> bool:
    """Whether all are finite: at once where their sum is; one that overflows takes a closer look."""
    # Sums of float16 overflow as soon as a few numbers are large; float8 has none.
    wide = values if values.dtype in _SUMMED else values.to(torch.float32)
    return math.isfinite(wide.sum().item()) or bool(wide.isfinite().all())


def _check_not_negative(rows: Tensor, tensors: Sequence[StoredTensor]) -> None:
    for row, tensor in zip(rows, tensors, strict=True):
        if row.min().item() < 0:
            raise CheckpointError(
                f"'{tensor.name}' in {tensor.file} has negative entries, which no Fisher diagonal has",
                hint="is it a checkpoint, or a gradient?",
            )
