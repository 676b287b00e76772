"""Random masks that depend on nothing but a key and the position of an element.

Each element's index goes through a 32-bit mixing function (multiply and xor-shift, the finalizer of MurmurHash3) twice,
with a different half of a 64-bit key mixed in before each pass. The key enters between the passes too, so the masks of
two keys are not shifted copies of each other. No state is carried from element to element: any block, thread or device
computes the same mask.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Key:
    """Sixty-four bits in two signed halves."""

    first: int
    second: int


def make_key(*parts: str | int) -> Key:
    """Derive a key from what identifies a random vector: seed, model, tensor."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8"), digest_size=8).digest()
    return Key(_signed(digest[:4]), _signed(digest[4:]))


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


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
    if density >= 1:
        return torch.ones(numel, device=device)
    limit = round(density * 2**32)
    if limit <= 0:
        return torch.zeros(numel, device=device)
    words = random_words(key, start, numel, device)
    return (words < min(limit - 2**31, 2**31 - 1)).to(torch.float32)


def random_words(key: Key, start: int, numel: int, device: torch.device) -> Tensor:
    """Return uniformly distributed signed 32-bit words, one per element.

    Every 2**32 elements the key changes, so vectors may have any length.
    """
    high, low = divmod(start, 2**32)
    before = 2**32 - low
    if numel > before:
        rest = random_words(key, start + before, numel - before, device)
        return torch.cat([random_words(key, start, before, device), rest])
    if high:
        key = make_key(key.first, key.second, high)
    words = torch.arange(low, low + numel, device=device).to(torch.int32)
    return _mix(_mix(words.bitwise_xor_(key.first)).bitwise_xor_(key.second))


def _mix(words: Tensor) -> Tensor:
    """Mix each 32-bit word in place; a bijection of which every output bit depends on every input bit."""
    for shift, factor in ((16, -2048144789), (13, -1028477387)):
        words.bitwise_xor_(_shifted(words, shift)).mul_(factor)
    return words.bitwise_xor_(_shifted(words, 16))


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros; torch's own shift of signed words copies the sign."""
    return words.bitwise_right_shift(by).bitwise_and_((1 << (32 - by)) - 1)
