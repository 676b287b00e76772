"""Random masks that depend on nothing but a key and the position of an element.

Each element's index goes through a 32-bit mixing function, the finalizer of MurmurHash3 (two multiplications between
xor-shifts). One half of a 64-bit key is mixed in before it and the other half between its multiplications, so the masks
of two keys are not shifted or permuted copies of each other. No state is carried from element to element: any block,
thread or device computes the same mask.

Words on the CPU are computed by numpy, whose unsigned shifts and comparisons take a third of the time of torch's.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint32]
# The multipliers of MurmurHash3's 32-bit finalizer.
_FACTORS = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))


@dataclass(frozen=True, slots=True)
class Key:
    """Sixty-four bits in two unsigned halves."""

    first: int
    second: int


def make_key(*parts: str | int) -> Key:
    """Derive a key from what identifies a random vector: seed, model, tensor."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8"), digest_size=8).digest()
    return Key(int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))


def keep_mask(key: Key, start: int, numel: int, density: float, device: torch.device) -> Tensor:
    """Choose each element with probability ``density``, independently.

    Args:
        key: Of the vector.
        start: Index of the first element in the vector.
        numel: How many elements.
        density: In [0, 1]; 1 keeps every element and 0 none, without exception.
        device: Where to make it.

    Returns:
        Float32 ones and zeros, shape ``(numel,)``.
    """
    limit = round(density * 2**32)
    if density >= 1 or limit >= 2**32:
        return torch.ones(numel, device=device)
    if limit <= 0:
        return torch.zeros(numel, device=device)
    if device.type == "cpu":
        return torch.from_numpy((random_words(key, start, numel) < np.uint32(limit)).astype(np.float32))
    # The same comparison on signed words: flipping the top bit turns the unsigned order into the signed one.
    words = _signed_words(key, start, numel, device).bitwise_xor_(-(2**31))
    return (words < limit - 2**31).to(torch.float32)


def random_words(key: Key, start: int, numel: int) -> Words:
    """Return uniformly distributed unsigned 32-bit words, one per element.

    Every 2**32 elements the key changes, so vectors may have any length.
    """
    parts = [_words(part, low, count) for part, low, count in _split(key, start, numel)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _split(key: Key, start: int, numel: int) -> Iterator[tuple[Key, int, int]]:
    """Cut a run where its index passes 32 bits: key, first index in 32 bits, count."""
    while numel > 0:
        high, low = divmod(start, 2**32)
        count = min(numel, 2**32 - low)
        yield (make_key(key.first, key.second, high) if high else key), low, count
        start, numel = start + count, numel - count


def _words(key: Key, low: int, count: int) -> Words:
    words = np.arange(low, low + count, dtype=np.uint32)
    shifted = np.empty_like(words)
    words ^= np.uint32(key.first)
    words ^= np.right_shift(words, 16, out=shifted)
    words *= _FACTORS[0]
    words ^= np.uint32(key.second)
    words ^= np.right_shift(words, 13, out=shifted)
    words *= _FACTORS[1]
    words ^= np.right_shift(words, 16, out=shifted)
    return words


def _signed_words(key: Key, start: int, numel: int, device: torch.device) -> Tensor:
    """Return the same words as signed integers, computed by torch."""
    return torch.cat([_torch_words(part, low, count, device) for part, low, count in _split(key, start, numel)])


def _torch_words(key: Key, low: int, count: int, device: torch.device) -> Tensor:
    first, second = (_as_signed(half) for half in (key.first, key.second))
    words = torch.arange(low, low + count, device=device).to(torch.int32).bitwise_xor_(first)
    words.bitwise_xor_(_shifted(words, 16)).mul_(_as_signed(int(_FACTORS[0]))).bitwise_xor_(second)
    words.bitwise_xor_(_shifted(words, 13)).mul_(_as_signed(int(_FACTORS[1])))
    return words.bitwise_xor_(_shifted(words, 16))


def _as_signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros; torch's own shift of signed words copies the sign."""
    return words.bitwise_right_shift(by).bitwise_and_((1 << (32 - by)) - 1)
