"""Random masks that depend on nothing but a key and the position of an element.

Every four elements share a 32-bit word, and each draws one of its bytes: below the density's first byte the element is
kept, above it dropped. Where the two are equal, once in 256 times, a word of the element's own is compared with the
rest of the density, so each element is kept with the density's probability to 2**-40 at a quarter of the words.

A word is its index after the finalizer of MurmurHash3 (two multiplications between xor-shifts). One half of a 64-bit
key is mixed in before it and the other half between its multiplications, so the masks of two keys are not shifted or
permuted copies of each other. No state is carried from element to element: any block, thread or device computes the
same mask.

Words on the CPU are computed by numpy, whose unsigned shifts and comparisons take a third of the time of torch's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from merge_cli.kernels import compiled
from merge_cli.kernels.arrays import Array
from merge_cli.kernels.sparse import true_indexes

Words = NDArray[np.uint32]
# Bytes are taken from the lowest on, whatever the machine's order.
_WORD = np.dtype("<u4")
_BYTES = 4
# Probability one in units of 2**-40.
_ALWAYS = 2**40
_HALF = 2**16
_LOWER_HALVES = np.arange(_HALF, dtype=_WORD)
# The multipliers of MurmurHash3's 32-bit finalizer.
_FACTORS = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))


@dataclass(frozen=True, slots=True)
class Key:
    """Sixty-four bits in two unsigned halves."""

    first: int
    second: int


@lru_cache(maxsize=256)
def make_key(*parts: str | int) -> Key:
    """Derive a key from what identifies a random vector: seed, model, tensor."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8"), digest_size=8).digest()
    return Key(int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))


def keep_mask(key: Key, start: int, density: float, out: Array) -> Array:
    """Choose each element with probability ``density``, independently: 1 where it is kept, 0 where it is dropped.

    Args:
        key: Of the vector.
        start: Index of the first element in the vector.
        density: In [0, 1]; 1 keeps every element and 0 none, without exception.
        out: Float32, shape ``(numel,)``, on the device where to work; overwritten.

    Returns:
        ``out``.
    """
    limit = round(density * _ALWAYS)
    if limit >= _ALWAYS:
        out[:] = 1
    elif limit <= 0:
        out[:] = 0
    else:
        _draw(None, key, start, limit, out)
    return out


def drop(row: Array, key: Key, start: int, density: float, out: Array) -> Array:
    """Multiply a row with the mask that :func:`keep_mask` gives for the same key, start and density.

    Args:
        row: Float32, shape ``(numel,)``.
        key: Of the vector.
        start: Index of the first element in the vector.
        density: In [0, 1].
        out: Like the row; overwritten.

    Returns:
        ``out``.
    """
    limit = round(density * _ALWAYS)
    if 0 < limit < _ALWAYS and compiled.can_take(row, out):
        _draw(row, key, start, limit, out)
        return out
    out = keep_mask(key, start, density, out)
    out *= row
    return out


def _draw(row: Array | None, key: Key, start: int, limit: int, out: Array) -> None:
    """Draw a mask with the probability ``limit`` times 2**-40; with a row, its product with the mask: compiled only."""
    first, rest = divmod(limit, 2**32)
    at = 0
    for part, low, count in _split(key, start, len(out)):
        piece = out[at : at + count]
        if compiled.can_take(piece):
            own = _own(part)
            keys = (part.first, part.second, own.first, own.second)
            compiled.drop(None if row is None else row[at : at + count], keys, low, first, rest, piece)
        elif piece.is_cpu:
            _draw_by_numpy(part, low, first, rest, piece.numpy())
        else:
            _draw_by_torch(part, low, first, rest, piece)
        at += count


def _split(key: Key, start: int, numel: int) -> Iterator[tuple[Key, int, int]]:
    """Cut a run where its index passes 32 bits: key, first index in 32 bits, count. There the key changes."""
    while numel > 0:
        high, low = divmod(start, 2**32)
        count = min(numel, 2**32 - low)
        yield (make_key(key.first, key.second, high) if high else key), low, count
        start, numel = start + count, numel - count


def _own(key: Key) -> Key:
    """Return the key of the words that are an element's own."""
    return make_key(key.first, key.second, "own")


def _draw_by_numpy(key: Key, low: int, first: int, rest: int, out: NDArray[np.float32]) -> None:
    begin, end = low // _BYTES, -(-(low + len(out)) // _BYTES)
    drawn = words_of_run(key, begin, end).view(np.uint8)[low - begin * _BYTES :][: len(out)]
    kept = drawn < np.uint8(first)
    if rest:
        ties = true_indexes(np.equal(drawn, np.uint8(first), out=drawn.view(np.bool_)))
        kept[ties] = random_words(_own(key), (ties + low).astype(_WORD)) < np.uint32(rest)
    np.copyto(out, kept)


def random_words(key: Key, indexes: Words) -> Words:
    """Return a uniformly distributed unsigned 32-bit word for each index, in its place."""
    indexes ^= np.uint32(key.first)
    indexes ^= indexes >> np.uint32(16)
    return _mixed(indexes, key.second)


def words_of_run(key: Key, begin: int, end: int) -> Words:
    """Return the words of all indexes from ``begin`` to ``end``.

    Indexes that have the upper half in common have all in common that the first xor and the first shift change: there
    both are one xor with a constant.
    """
    words = np.empty(end - begin, dtype=_WORD)
    for at in range(begin - begin % _HALF, end, _HALF):
        changed = at ^ key.first
        start, stop = max(at, begin), min(at + _HALF, end)
        low = _LOWER_HALVES[start - at : stop - at]
        np.bitwise_xor(low, np.uint32(changed ^ changed >> 16), out=words[start - begin : stop - begin])
    return _mixed(words, key.second)


def _mixed(words: Words, second: int) -> Words:
    """Do what follows the finalizer's first shift, in place."""
    shifted = np.empty_like(words)
    words *= _FACTORS[0]
    words ^= np.uint32(second)
    words ^= np.right_shift(words, 13, out=shifted)
    words *= _FACTORS[1]
    words ^= np.right_shift(words, 16, out=shifted)
    return words


def _draw_by_torch(key: Key, low: int, first: int, rest: int, out: Array) -> None:
    """Draw the same by torch, whose words are signed; nothing here waits for a GPU."""
    import torch

    begin, end = low // _BYTES, -(-(low + len(out)) // _BYTES)
    skipped = low - begin * _BYTES
    drawn = _signed_words(key, torch.arange(begin, end, device=out.device)).view(torch.uint8)
    drawn = drawn[skipped : skipped + len(out)]
    own = _signed_words(_own(key), torch.arange(low, low + len(out), device=out.device))
    # Flipping the top bit turns the unsigned order into the signed one.
    kept = own.bitwise_xor_(-(2**31)) < rest - 2**31
    out.copy_((drawn < first) | kept.logical_and_(drawn == first))


def _signed_words(key: Key, indexes: Array) -> Array:
    """Return the words of :func:`random_words` as signed integers."""
    import torch

    first, second = (_as_signed(half) for half in (key.first, key.second))
    words = indexes.to(torch.int32).bitwise_xor_(first)
    words.bitwise_xor_(_shifted(words, 16)).mul_(_as_signed(int(_FACTORS[0]))).bitwise_xor_(second)
    words.bitwise_xor_(_shifted(words, 13)).mul_(_as_signed(int(_FACTORS[1])))
    return words.bitwise_xor_(_shifted(words, 16))


def _as_signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _shifted(words: Array, by: int) -> Array:
    """Shift right, filling with zeros; torch's own shift of signed words copies the sign."""
    return words.bitwise_right_shift(by).bitwise_and_((1 << (32 - by)) - 1)
