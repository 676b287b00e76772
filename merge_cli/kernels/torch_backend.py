"""The kernels on torch tensors, on any device; and on those in the CPU's memory, which the cpu backend shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge_cli.kernels.hash_words import BYTES, FACTORS

if TYPE_CHECKING:
    from merge_cli.kernels.backend import Backend
    from merge_cli.kernels.numpy_backend import NumpyBackend

# Up to here numbers round to 448, the largest of float8_e4m3fn; torch may give that for larger ones without a word.
_MOST_E4M3 = 464
# Narrower dtypes overflow as soon as a few numbers are large, or have no sum.
_SUMMED = (torch.bfloat16, torch.float32, torch.float64)
_MOST_PATTERN = 0x7F80_0000


class TorchBackend:
    """Backend for torch tensors; see :class:`merge_cli.kernels.backend.Backend`."""

    name = "torch"
    compiled = False

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Return a new float32 tensor, its content undefined."""
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def staging(self, nbytes: int) -> NDArray[np.uint8]:
        """Return memory that files are read into and written from, pinned where a GPU copies from it."""
        memory: NDArray[np.uint8] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.device.type != "cpu").numpy()
        return memory

    def from_numpy(self, numbers: NDArray[np.float32]) -> Tensor:
        """Return numbers as a tensor."""
        return torch.from_numpy(numbers).to(self.device)

    def shared(self, array: Tensor) -> NDArray[np.float32] | None:
        """Return a tensor's memory, None where it is on a GPU."""
        return array.numpy() if array.is_cpu else None

    def plain(self, array: Tensor) -> Tensor:
        """Return a tensor as contiguous float32."""
        return array.to(torch.float32).contiguous()

    def column(self, values: Sequence[float]) -> Tensor:
        """Return numbers as a float32 column."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None]

    def lower(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the lower of each pair of numbers."""
        return one.minimum(other)

    def higher(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the higher of each pair of numbers."""
        return one.maximum(other)

    def concatenate(self, pieces: Sequence[Tensor]) -> Tensor:
        """Return rows one after the other as one row."""
        return torch.cat(list(pieces))

    def largest(self, magnitudes: Tensor, ranks: Sequence[int]) -> list[float]:
        """Return the magnitudes of these ranks."""
        return [float(magnitudes.kthvalue(len(magnitudes) - rank + 1).values) for rank in ranks]

    def to_float32(self, stored: Tensor | NDArray[Any], dtype: str, less: Tensor | None, out: Tensor) -> list[int]:
        """Convert rows to float32, take ``less`` from each, and return how many numbers of each were not finite."""
        if stored is not out:
            # One conversion for all: a call costs as much as some ten thousand elements.
            out.copy_(_as_tensor(stored, dtype))
        # Only where the sum is not finite can a number be; or it overflows.
        wrong = [0] * len(out) if math.isfinite(out.sum().item()) else [int((~row.isfinite()).sum()) for row in out]
        if less is not None:
            out -= less
        return wrong

    def from_float32(self, numbers: Tensor, dtype: str, out: Tensor | NDArray[Any]) -> int:
        """Round a row to the nearest numbers of a dtype, and return how many are not finite then."""
        out = _as_tensor(out, dtype)
        out.copy_(numbers)
        wide = out if out.dtype in _SUMMED else out.to(torch.float32)
        sound = dtype != "float8_e4m3fn" or bool((numbers.abs() <= _MOST_E4M3).all())
        if sound and math.isfinite(wide.sum().item()):
            return 0
        finite = wide.isfinite()
        if dtype == "float8_e4m3fn":
            finite &= numbers.abs().to(finite.device) <= _MOST_E4M3
        return int((~finite).sum())

    def zero_below(self, row: Tensor, bound: float, factor: float, out: Tensor) -> None:
        """Zero what is no larger in magnitude than ``bound``, and multiply the rest."""
        if bound < 0:
            out.copy_(row).mul_(factor)
        else:
            torch.ops.aten.hardshrink.out(row, bound, out=out).mul_(factor)

    def in_bracket(self, row: Tensor, low: float, high: float) -> tuple[int, NDArray[np.int32]]:
        """Return how many magnitudes lie above a bracket, and the patterns of those inside."""
        least = int(np.float32(low).view(np.int32))
        end = _MOST_PATTERN + 1 if math.isnan(high) else int(np.float32(high).view(np.int32))
        patterns = row.abs().view(torch.int32)
        above = 0 if math.isnan(high) else int((patterns >= end).sum())
        return above, (patterns[(patterns >= least) & (patterns < end)] - least).cpu().numpy()

    def sum_models(self, rows: Tensor) -> Tensor:
        """Sum rows in their order."""
        if len(rows) == 1:
            return rows[0].clone()
        total = rows[0] + rows[1]
        for row in rows[2:]:
            total.add_(row)
        return total

    def weighted_sum(self, rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Sum rows times their weights, in their order."""
        # No add_ with alpha: it rounds once on processors that can, and not elsewhere.
        total = rows[0] * weights[0]
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            total += row * weight
        return total

    def elect_sign(self, weighted: Tensor, *, by_count: bool, plus: bool) -> Tensor:
        """Return the sign that each element is given."""
        sign = self.sum_models(weighted.sign() if by_count else weighted).sign_()
        # sign + 1/2 is positive for 0 and +1 and negative for -1.
        return sign.add_(0.5).sign_() if plus else sign

    def disjoint_merge(
        self, weighted: Tensor, weights: Sequence[float], *, by_count: bool, plus: bool, least_divisor: float | None
    ) -> Tensor:
        """Sum what agrees with the elected sign."""
        elected = self.elect_sign(weighted, by_count=by_count, plus=plus)
        # Folded onto the elected side, agreeing entries are positive, and everything else is cut at zero.
        folded = weighted.mul_(elected).clamp_(min=0)
        total = self.sum_models(folded).mul_(elected)
        if least_divisor is None:
            return total
        divisor = self.weighted_sum(list(folded.sign_()), weights)
        if min(weights) >= 0:
            return total.div_(divisor.clamp_(min=least_divisor))
        return total.div_(divisor.masked_fill_(divisor.abs() < least_divisor, 1.0))

    def draw(
        self, row: Tensor | None, keys: tuple[int, int, int, int], start: int, limit: int, rest: int, out: Tensor
    ) -> None:
        """Multiply a row, or ones, with a random mask; nothing here waits for a GPU."""
        begin, end = start // BYTES, -(-(start + len(out)) // BYTES)
        skipped = start - begin * BYTES
        drawn = signed_words(keys[0], keys[1], torch.arange(begin, end, device=out.device)).view(torch.uint8)
        drawn = drawn[skipped : skipped + len(out)]
        own = signed_words(keys[2], keys[3], torch.arange(start, start + len(out), device=out.device))
        # Flipping the top bit turns the unsigned order into the signed one.
        kept = own.bitwise_xor_(-(2**31)) < rest - 2**31
        out.copy_((drawn < limit) | kept.logical_and_(drawn == limit))
        if row is not None:
            out *= row

    def chunk_sums(self, rows: Tensor, length: int) -> Tensor:
        """Sum each row over runs of ``length`` elements, in float64."""
        whole = rows.shape[1] // length * length
        parts = [rows[:, :whole].reshape(len(rows), -1, length).sum(dim=2, dtype=torch.float64)]
        if whole < rows.shape[1]:
            parts.append(rows[:, whole:].sum(dim=1, keepdim=True, dtype=torch.float64))
        return torch.cat(parts, dim=1).cpu()

    def chunk_gram(self, first: Tensor, second: Tensor, length: int) -> Tensor:
        """Sum squares and products over runs, in float64."""
        one, other = first.double(), second.double()
        return self.chunk_sums(torch.stack([one * one, other * other, one * other]), length)


class SharedBackend(TorchBackend):
    """Hands contiguous float32 tensors in the CPU's memory to the cpu backend, which is faster than torch there."""

    def __init__(self, cpu: NumpyBackend) -> None:
        super().__init__("cpu")
        self.cpu = cpu
        self.compiled = cpu.compiled

    def largest(self, magnitudes: Tensor, ranks: Sequence[int]) -> list[float]:
        """Return the magnitudes of these ranks."""
        return self.cpu.largest(magnitudes.numpy(), ranks)

    def to_float32(self, stored: Tensor | NDArray[Any], dtype: str, less: Tensor | None, out: Tensor) -> list[int]:
        """Convert rows to float32, take ``less`` from each, and return how many numbers of each were not finite."""
        if isinstance(stored, np.ndarray):
            subtracted = None if less is None else less.contiguous().numpy()
            return self.cpu.to_float32(stored, dtype, subtracted, out.numpy())
        if stored is not out and not _is_narrow(stored):
            return super().to_float32(stored, dtype, less, out)
        rows = out.numpy()
        taken = rows if stored is out else stored.view(torch.uint16).numpy()
        return self.cpu.to_float32(taken, dtype, None if less is None else less.contiguous().numpy(), rows)

    def from_float32(self, numbers: Tensor, dtype: str, out: Tensor | NDArray[Any]) -> int:
        """Round a row to the nearest numbers of a dtype, and return how many are not finite then."""
        if isinstance(out, np.ndarray):
            return self.cpu.from_float32(numbers.numpy(), dtype, out)
        return super().from_float32(numbers, dtype, out)

    def zero_below(self, row: Tensor, bound: float, factor: float, out: Tensor) -> None:
        """Zero what is no larger in magnitude than ``bound``, and multiply the rest."""
        self.cpu.zero_below(row.numpy(), bound, factor, out.numpy())

    def in_bracket(self, row: Tensor, low: float, high: float) -> tuple[int, NDArray[np.int32]]:
        """Return how many magnitudes lie above a bracket, and the patterns of those inside."""
        return self.cpu.in_bracket(row.numpy(), low, high)

    def weighted_sum(self, rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Sum rows times their weights, in their order."""
        return torch.from_numpy(self.cpu.weighted_sum([row.contiguous().numpy() for row in rows], weights))

    def disjoint_merge(
        self, weighted: Tensor, weights: Sequence[float], *, by_count: bool, plus: bool, least_divisor: float | None
    ) -> Tensor:
        """Sum what agrees with the elected sign."""
        merged = self.cpu.disjoint_merge(
            weighted.numpy(), weights, by_count=by_count, plus=plus, least_divisor=least_divisor
        )
        return torch.from_numpy(merged)

    def draw(
        self, row: Tensor | None, keys: tuple[int, int, int, int], start: int, limit: int, rest: int, out: Tensor
    ) -> None:
        """Multiply a row, or ones, with a random mask."""
        self.cpu.draw(None if row is None else row.contiguous().numpy(), keys, start, limit, rest, out.numpy())

    def chunk_gram(self, first: Tensor, second: Tensor, length: int) -> Tensor:
        """Sum squares and products over runs, in float64."""
        return torch.from_numpy(self.cpu.chunk_gram(first.numpy(), second.contiguous().numpy(), length))


def backend_of(tensor: Tensor, cpu: NumpyBackend) -> Backend:
    """Return what works on a tensor."""
    return shared_backend(cpu) if _is_shared(tensor) else _torch(tensor.device)


@lru_cache(maxsize=8)
def shared_backend(cpu: NumpyBackend) -> SharedBackend:
    """Return what works on tensors in the memory of the CPU."""
    return SharedBackend(cpu)


@lru_cache(maxsize=64)
def _torch(device: torch.device) -> TorchBackend:
    return TorchBackend(device)


def _as_tensor(array: Tensor | NDArray[Any], dtype: str) -> Tensor:
    """Return numpy's pattern of a dtype as a tensor of it, in the same memory."""
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(array.view(np.uint8)).view(getattr(torch, dtype)).reshape(array.shape)


def _is_shared(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype is torch.float32 and tensor.is_contiguous()


def _is_narrow(stored: Tensor) -> bool:
    return stored.dtype in (torch.bfloat16, torch.float16) and stored.is_cpu and stored.is_contiguous()


def signed_words(first: int, second: int, indexes: Tensor) -> Tensor:
    """Return the words of :func:`merge_cli.kernels.hash_words.random_words` as signed integers."""
    words = indexes.to(torch.int32).bitwise_xor_(_as_signed(first))
    words.bitwise_xor_(_shifted(words, 16)).mul_(_as_signed(FACTORS[0])).bitwise_xor_(_as_signed(second))
    words.bitwise_xor_(_shifted(words, 13)).mul_(_as_signed(FACTORS[1]))
    return words.bitwise_xor_(_shifted(words, 16))


def _as_signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros; torch's own shift of signed words copies the sign."""
    return words.bitwise_right_shift(by).bitwise_and_((1 << (32 - by)) - 1)
