"""Random masks that depend on nothing but a key and the position of an element.

Every four elements share a 32-bit word, and each draws one of its bytes: below the density's first byte the element is
kept, above it dropped. Where the two are equal, once in 256 times, a word of the element's own is compared with the
rest of the density, so each element is kept with the density's probability to 2**-40 at a quarter of the words.

No state is carried from element to element: any block, thread or device computes the same mask. ``hash_words`` has
what a word is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from merge_cli.kernels.backend import Array, backend_of

# Probability one in units of 2**-40.
_ALWAYS = 2**40


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
    return _draw(None, key, start, density, out)


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
    return _draw(row, key, start, density, out)


def _draw(row: Array | None, key: Key, start: int, density: float, out: Array) -> Array:
    limit = round(density * _ALWAYS)
    if not 0 < limit < _ALWAYS:
        out[:] = float(limit > 0)
        if row is not None:
            out *= row
        return out
    backend = backend_of(out)
    byte, rest = divmod(limit, 2**32)
    at = 0
    for part, low, count in _split(key, start, len(out)):
        own = make_key(part.first, part.second, "own")
        piece = slice(at, at + count)
        keys = (part.first, part.second, own.first, own.second)
        backend.draw(None if row is None else row[piece], keys, low, byte, rest, out[piece])
        at += count
    return out


def _split(key: Key, start: int, numel: int) -> Iterator[tuple[Key, int, int]]:
    """Cut a run where its index passes 32 bits: key, first index in 32 bits, count. There the key changes."""
    while numel > 0:
        high, low = divmod(start, 2**32)
        count = min(numel, 2**32 - low)
        yield (make_key(key.first, key.second, high) if high else key), low, count
        start, numel = start + count, numel - count
