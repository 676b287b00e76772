"""The exact k-th largest magnitude of a vector that is only seen in blocks, in constant memory.

The bit patterns of non-negative float32 numbers, read as integers, are in the order of the numbers. So the k-th largest
magnitude is found by counting patterns in bins, then counting again inside the one bin that holds it, until bins are
single patterns: two rounds of 65,536 bins. Counts are integers, so blocks and threads cannot change the result.
"""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 65536
_ALL_PATTERNS = 2**31


@dataclass(frozen=True, slots=True)
class Bracket:
    """Where the k-th largest magnitude of one row lies: among the patterns ``low`` <= p < ``high``.

    Attributes:
        low: Smallest pattern it can have.
        high: One more than the largest.
        rank: Which of the patterns inside it is, counted from the largest, 1 first.
    """

    low: int
    high: int
    rank: int

    @property
    def shift(self) -> int:
        """Bits by which a pattern less ``low`` is shifted to give its bin."""
        return max(0, (self.high - self.low - 1).bit_length() - 16)


def first_bracket(numel: int, density: float) -> Bracket | float:
    """Return where to look for the magnitude from which on ``int(density * numel)`` entries are kept.

    Returns:
        A bracket, or the threshold at once: 0.0 to keep all, infinity to keep none.
    """
    rank = int(density * numel)
    if rank >= numel:
        return 0.0
    return Bracket(0, _ALL_PATTERNS, rank) if rank else float("inf")


def count_inside(row: Tensor, bracket: Bracket) -> Tensor:
    """Count the entries of a row in each bin of a bracket.

    Args:
        row: Float32, shape ``(numel,)``.
        bracket: From :func:`first_bracket` or :func:`narrow`.

    Returns:
        Int64 counts on the CPU, one per bin.
    """
    patterns = row.abs().view(torch.int32)
    if bracket.high - bracket.low < _ALL_PATTERNS:
        patterns = patterns[(patterns >= bracket.low) & (patterns < bracket.high)].sub_(bracket.low)
    bins = patterns.bitwise_right_shift_(bracket.shift)
    return torch.bincount(bins, minlength=_BINS).cpu()


def narrow(bracket: Bracket, counts: Tensor) -> Bracket | float:
    """Return the bracket of the bin that holds the wanted entry; the threshold itself where a bin is one pattern."""
    from_largest = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_largest, bracket.rank))
    chosen = len(counts) - 1 - place
    above = int(from_largest[place]) - int(counts[chosen])
    low = bracket.low + (chosen << bracket.shift)
    if bracket.shift == 0:
        return threshold_of(low)
    return Bracket(low, low + (1 << bracket.shift), bracket.rank - above)


def threshold_of(pattern: int) -> float:
    """Return the float32 number that has this bit pattern."""
    value: float = struct.unpack("<f", struct.pack("<I", pattern))[0]
    return value
