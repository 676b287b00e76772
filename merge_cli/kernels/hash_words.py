"""The words that random masks are drawn from: a hash of a key and an element's index, in numpy.

A word is its index after the finalizer of MurmurHash3 (two multiplications between xor-shifts). One half of a 64-bit
key is mixed in before it and the other half between its multiplications, so the masks of two keys are not shifted or
permuted copies of each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
# Bytes are taken from the lowest on, whatever the machine's order.
WORD = np.dtype("<u4")
BYTES = WORD.itemsize
_HALF = 2**16
_LOWER_HALVES = np.arange(_HALF, dtype=WORD)
FACTORS = (0x85EBCA6B, 0xC2B2AE35)
"""The multipliers of MurmurHash3's 32-bit finalizer."""


def random_words(first: int, second: int, indexes: Words) -> Words:
    """Return a uniformly distributed unsigned 32-bit word for each index, in its place.

    Args:
        first: The first half of the key.
        second: Its second half.
        indexes: The indexes; overwritten.
    """
    indexes ^= np.uint32(first)
    indexes ^= indexes >> np.uint32(16)
    return _mixed(indexes, second)


def words_of_run(first: int, second: int, begin: int, end: int) -> Words:
    """Return the words of all indexes from ``begin`` to ``end``.

    Indexes that have the upper half in common have all in common that the first xor and the first shift change: there
    both are one xor with a constant.
    """
    words = np.empty(end - begin, dtype=WORD)
    for at in range(begin - begin % _HALF, end, _HALF):
        changed = at ^ first
        start, stop = max(at, begin), min(at + _HALF, end)
        low = _LOWER_HALVES[start - at : stop - at]
        np.bitwise_xor(low, np.uint32(changed ^ changed >> 16), out=words[start - begin : stop - begin])
    return _mixed(words, second)


def _mixed(words: Words, second: int) -> Words:
    """Do what follows the finalizer's first shift, in place."""
    shifted = np.empty_like(words)
    words *= np.uint32(FACTORS[0])
    words ^= np.uint32(second)
    words ^= np.right_shift(words, 13, out=shifted)
    words *= np.uint32(FACTORS[1])
    words ^= np.right_shift(words, 16, out=shifted)
    return words
