"""The kernels on numpy arrays in nothing but numpy: for machines where nothing was compiled.

The same operations in the same order as in C (``compiled.c``), so the same bits; several passes where that takes one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from merge_cli.kernels import numpy_casts
from merge_cli.kernels.hash_words import BYTES, WORD, random_words, words_of_run
from merge_cli.kernels.numpy_casts import Floats, Stored

# Elements worked on at a time: what is between two steps stays in the second cache.
_CHUNK = 2**15
# Partial sums of an inner product; compiled.c has as many.
_LANES = 32
# Eight bytes are one word.
_SHIFT = 3
_EIGHT = 1 << _SHIFT


class NumpyBackend:
    """Backend for numpy arrays; see :class:`merge_cli.kernels.backend.Backend`."""

    name = "cpu"
    compiled = False

    def empty(self, shape: tuple[int, ...]) -> Floats:
        """Return a new float32 array, its content undefined."""
        return np.empty(shape, np.float32)

    def staging(self, nbytes: int) -> NDArray[np.uint8]:
        """Return memory that files are read into and written from."""
        return np.empty(nbytes, np.uint8)

    def from_numpy(self, numbers: Floats) -> Floats:
        """Return the numbers."""
        return numbers

    def shared(self, array: Floats) -> Floats:
        """Return the array."""
        return array

    def plain(self, array: Floats) -> Floats:
        """Return an array as contiguous float32."""
        return np.ascontiguousarray(array, dtype=np.float32)

    def column(self, values: Sequence[float]) -> Floats:
        """Return numbers as a float32 column."""
        return np.array(values, dtype=np.float32)[:, None]

    def lower(self, one: Floats, other: Floats) -> Floats:
        """Return the lower of each pair of numbers."""
        return np.minimum(one, other)

    def higher(self, one: Floats, other: Floats) -> Floats:
        """Return the higher of each pair of numbers."""
        return np.maximum(one, other)

    def concatenate(self, pieces: Sequence[Floats]) -> Floats:
        """Return rows one after the other as one row."""
        return np.concatenate(pieces)

    def largest(self, magnitudes: Floats, ranks: Sequence[int]) -> list[float]:
        """Return the magnitudes of these ranks.

        Integers are partitioned faster than floats, and twice in a row ten times as fast as for two places at once.
        """
        patterns, done = magnitudes.view(np.int32), 0
        places = [len(magnitudes) - rank for rank in ranks]
        for place in places:
            patterns[done:].partition(place - done)
            done = place
        return [float(magnitudes[place]) for place in places]

    def to_float32(self, stored: Stored, dtype: str, less: Floats | None, out: Floats) -> list[int]:
        """Convert rows to float32, take ``less`` from each, and return how many numbers of each were not finite."""
        return numpy_casts.to_float32(stored, dtype, less, out)

    def from_float32(self, numbers: Floats, dtype: str, out: Stored) -> int:
        """Round a row to the nearest numbers of a dtype, and return how many are not finite then."""
        return numpy_casts.from_float32(numbers, dtype, out)

    def zero_below(self, row: Floats, bound: float, factor: float, out: Floats) -> None:
        """Zero what is no larger in magnitude than ``bound``, and multiply the rest."""
        with np.errstate(all="ignore"):
            for at in range(0, len(row), _CHUNK):
                piece = row[at : at + _CHUNK]
                kept = out[at : at + _CHUNK]
                _zero(piece, np.abs(piece) <= np.float32(bound), kept)
                kept *= np.float32(factor)

    def in_bracket(self, row: Floats, low: float, high: float) -> tuple[int, NDArray[np.int32]]:
        """Return how many magnitudes lie above a bracket, and the patterns of those inside."""
        magnitudes = np.abs(row)
        inside = magnitudes >= np.float32(low)
        above = 0
        if not np.isnan(high):
            over = magnitudes >= np.float32(high)
            above = int(np.count_nonzero(over))
            inside &= ~over
        return above, magnitudes[true_indexes(inside)].view(np.int32) - np.float32(low).view(np.int32)

    def sum_models(self, rows: Floats) -> Floats:
        """Sum rows in their order."""
        with np.errstate(all="ignore"):
            total = rows[0] + rows[1] if len(rows) > 1 else np.array(rows[0])
            for row in rows[2:]:
                total += row
        return total

    def weighted_sum(self, rows: Sequence[Floats], weights: Sequence[float]) -> Floats:
        """Sum rows times their weights, in their order."""
        factors = np.array(weights, dtype=np.float32)
        total = np.empty_like(rows[0])
        with np.errstate(all="ignore"):
            for at in range(0, len(total), _CHUNK):
                piece = slice(at, at + _CHUNK)
                np.multiply(rows[0][piece], factors[0], out=total[piece])
                for row, factor in zip(rows[1:], factors[1:], strict=True):
                    total[piece] += row[piece] * factor
        return total

    def elect_sign(self, weighted: Floats, *, by_count: bool, plus: bool) -> Floats:
        """Return the sign that each element is given."""
        sums = self.sum_models(_sign(weighted) if by_count else weighted)
        return np.subtract(1, 2 * (sums < 0).view(np.int8), dtype=np.float32) if plus else _sign(sums)

    def disjoint_merge(
        self, weighted: Floats, weights: Sequence[float], *, by_count: bool, plus: bool, least_divisor: float | None
    ) -> Floats:
        """Sum what agrees with the elected sign."""
        merged = self.empty(tuple(weighted.shape[1:]))
        with np.errstate(all="ignore"):
            for at in range(0, weighted.shape[1], _CHUNK):
                rows = weighted[:, at : at + _CHUNK]
                elected = self.elect_sign(rows, by_count=by_count, plus=plus)
                # Folded onto the elected side, agreeing entries are positive, and everything else is cut at zero.
                folded = rows * elected
                _zero(folded, folded < 0, folded)
                total = self.sum_models(folded)
                total *= elected
                if least_divisor is not None:
                    divisor = self.weighted_sum(list((folded > 0).astype(np.float32)), weights)
                    np.copyto(divisor, 1, where=np.abs(divisor) < np.float32(least_divisor))
                    total /= divisor
                merged[at : at + _CHUNK] = total
        return merged

    def draw(
        self, row: Floats | None, keys: tuple[int, int, int, int], start: int, limit: int, rest: int, out: Floats
    ) -> None:
        """Multiply a row, or ones, with a random mask."""
        begin, end = start // BYTES, -(-(start + len(out)) // BYTES)
        drawn = words_of_run(keys[0], keys[1], begin, end).view(np.uint8)[start - begin * BYTES :][: len(out)]
        kept = drawn < np.uint8(limit)
        if rest:
            ties = true_indexes(np.equal(drawn, np.uint8(limit), out=drawn.view(np.bool_)))
            kept[ties] = random_words(keys[2], keys[3], (ties + start).astype(WORD)) < np.uint32(rest)
        np.copyto(out, kept)
        if row is not None:
            with np.errstate(all="ignore"):
                out *= row

    def chunk_sums(self, rows: Floats, length: int) -> NDArray[np.float64]:
        """Sum each row over runs of ``length`` elements, in float64."""
        whole = rows.shape[1] // length * length
        sums = [rows[:, :whole].reshape(len(rows), -1, length).sum(axis=2, dtype=np.float64)]
        if whole < rows.shape[1]:
            sums.append(rows[:, whole:].sum(axis=1, keepdims=True, dtype=np.float64))
        return np.concatenate(sums, axis=1)

    def chunk_gram(self, first: Floats, second: Floats, length: int) -> NDArray[np.float64]:
        """Sum squares and products over runs: element j into lane j mod 32, then the lanes in order."""
        runs = []
        for at in range(0, len(first), length):
            one, other = (np.asarray(each[at : at + length], dtype=np.float64) for each in (first, second))
            runs.append([_inner(one, one), _inner(other, other), _inner(one, other)])
        return np.array(runs, dtype=np.float64).reshape(-1, 3).T

    def page_sums(self, pages: NDArray[np.uint32], keys: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Sum the words of each page, each times the key of its place, modulo 2^64.

        Args:
            pages: Shape ``(pages, words)``, contiguous.
            keys: Shape ``(words,)``.
        """
        sums: NDArray[np.uint64] = np.einsum("ij,j->i", pages, keys, dtype=np.uint64, casting="unsafe")
        return sums


def true_indexes(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the indexes of the true elements, in order.

    Where they are few, most runs of eight are false and are passed over as one word: twice as fast as
    :func:`numpy.flatnonzero` below one in a hundred, and from one in twenty on, where that slows down; in between
    slower by half.

    Args:
        mask: Shape ``(numel,)``, contiguous.
    """
    whole = len(mask) // _EIGHT * _EIGHT
    eights = mask[:whole].view(np.uint64)
    places = np.flatnonzero(eights != 0)
    inside = np.flatnonzero(eights[places].view(np.bool_))
    found = (places[inside >> _SHIFT] << _SHIFT) + inside % _EIGHT
    return found if whole == len(mask) else np.concatenate([found, np.flatnonzero(mask[whole:]) + whole])


def _zero(numbers: NDArray[np.float32], where: NDArray[np.bool_], out: NDArray[np.float32]) -> None:
    """Copy numbers, with +0 in some places: by bits, because a product would keep the sign, and an index is slow."""
    kept = np.subtract(where, 1, dtype=np.int32)
    np.bitwise_and(numbers.view(np.int32), kept, out=out.view(np.int32))


def _sign(numbers: Floats) -> Floats:
    """Return -1, 0 or +1 for each number, ten times as fast as numpy's."""
    sign: Floats = np.subtract(numbers > 0, numbers < 0, dtype=np.int8).astype(np.float32)
    return sign


def _inner(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    products = one * other
    if missing := -len(products) % _LANES:
        products = np.concatenate([products, np.zeros(missing)])
    # Along its first axis numpy adds row by row, and what accumulates is added one by one.
    return float(np.add.accumulate(products.reshape(-1, _LANES).sum(axis=0))[-1]) + 0.0
