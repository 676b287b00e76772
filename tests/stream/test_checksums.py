"""The checksum of what is written, held against the definition in whole numbers."""

import random
import zlib

import pytest

from merge_cli.kernels import backend
from merge_cli.kernels.numpy_backend import NumpyBackend
from merge_cli.stream.checksums import PAGE_BYTES, checksum

MASK = 2**64 - 1


@pytest.fixture(params=[True, False], autouse=True)
def compiled_or_not(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(backend, "CPU", NumpyBackend())


def key(place: int) -> int:
    """The key of a word's place: the upper half of splitmix64's mix of multiples of the golden ratio's fraction."""
    word = (place + 1) * 0x9E3779B97F4A7C15 & MASK
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word >> 32 | 1


def by_definition(raw: bytes) -> int:
    whole, found = len(raw) // 4096 * 4096, 0
    for page in range(0, whole, 4096):
        words = [int.from_bytes(raw[page + 4 * i : page + 4 * i + 4], "little") for i in range(1024)]
        total = sum(word * key(i) for i, word in enumerate(words)) & MASK
        found = zlib.crc32(total.to_bytes(8, "little"), found)
    return zlib.crc32(raw[whole:], found) if raw[whole:] else found


@pytest.mark.parametrize("numel", [0, 1, 8, 4095, 4096, 4097, 12288, 20000])
def test_it_is_what_its_definition_says(numel: int) -> None:
    raw = random.Random(numel).randbytes(numel)
    assert checksum(memoryview(raw)) == by_definition(raw)


def test_it_does_not_depend_on_how_bytes_are_cut_at_pages() -> None:
    raw = memoryview(random.Random(1).randbytes(10 * PAGE_BYTES + 123))
    whole = checksum(raw)
    for cut in (PAGE_BYTES, 4 * PAGE_BYTES, 10 * PAGE_BYTES):
        assert checksum(raw[cut:], checksum(raw[:cut])) == whole


def test_it_shows_every_changed_bit_and_bytes_that_were_lost_or_moved() -> None:
    raw = random.Random(2).randbytes(2 * PAGE_BYTES + 100)
    seen = {checksum(memoryview(raw))}
    for bit in random.Random(3).sample(range(8 * len(raw)), 300):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        seen.add(checksum(memoryview(changed)))
    moved = raw[PAGE_BYTES : 2 * PAGE_BYTES] + raw[:PAGE_BYTES] + raw[2 * PAGE_BYTES :]
    lost = bytes(PAGE_BYTES) + raw[PAGE_BYTES:]
    for other in (moved, lost, raw + b"\0", raw[:-1]):
        seen.add(checksum(memoryview(other)))
    assert len(seen) == 1 + 300 + 4
