"""Random masks, against the same hash in Python's integers and against statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_cli.kernels import Key, hash_words, keep_mask, make_key
from merge_cli.kernels.hash_words import Words
from merge_cli.kernels.numpy_backend import NumpyBackend
from merge_cli.kernels.torch_backend import TorchBackend, signed_words
from tests import oracle

NUMEL = 2**18


def mask(*parts: str | int, density: float, numel: int = NUMEL, start: int = 0) -> Tensor:
    return keep_mask(make_key(*parts), start, density, torch.empty(numel))


def words_of_run(key: Key, begin: int, end: int) -> Words:
    return hash_words.words_of_run(key.first, key.second, begin, end)


def words(key: Key, *, numel: int, start: int = 0) -> Words:
    return hash_words.random_words(key.first, key.second, np.arange(start, start + numel, dtype=np.uint32))


# --- the hash ---------------------------------------------------------------------------------------------------------


def test_the_reference_is_the_finalizer_of_murmurhash3() -> None:
    # MurmurHash3_x86_32 of nothing is the finalizer of its seed; these three are published with its tests.
    assert oracle.fmix32(0) == 0
    assert oracle.fmix32(1) == 0x514E28B7
    assert oracle.fmix32(0xFFFFFFFF) == 0x81F16F39


PARTS = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "model.layers.0.mlp.weight"), ("Ω", 7)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("start", [0, 1, 16384, 2**31 - 3, 2**31, 2**32 - 20])
def test_words_are_those_of_the_reference_in_plain_integers(parts: tuple[str | int, ...], start: int) -> None:
    expected = [oracle.random_word(parts, index) for index in range(start, start + 20)]
    assert words(make_key(*parts), numel=20, start=start).tolist() == expected


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 16384, 2**31 - 3, 2**31, 2**32 - 6, 2**32 - 1, 2**32, 3 * 2**32 - 2])
def test_masks_are_those_of_the_reference_wherever_they_start(parts: tuple[str | int, ...], start: int) -> None:
    got = mask(*parts, density=0.4, numel=50, start=start)
    assert got.tolist() == oracle.keep_mask(parts, 50, 0.4, start=start)


# With 1/512 every element whose first byte is zero is decided by its own word.
@pytest.mark.parametrize("density", [0.0, 1e-12, 0.001, 1 / 512, 0.25, 0.5, 0.9, 1 - 1 / 512, 1 - 1e-12, 1.0])
def test_masks_are_those_of_the_reference_at_every_density(density: float) -> None:
    got = mask(5, 0, "x", density=density, numel=3000)
    assert got.dtype == torch.float32
    assert got.tolist() == oracle.keep_mask((5, 0, "x"), 3000, density)


@pytest.mark.parametrize("begin", [0, 1, 65_535, 65_536, 2**30 - 9])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_words_of_a_run_are_those_of_the_reference(begin: int, count: int) -> None:
    expected = [oracle.random_word((1, "w"), index) for index in range(begin, begin + count)]
    assert words_of_run(make_key(1, "w"), begin, begin + count).tolist() == expected


def test_words_of_a_run_of_several_upper_halves_are_those_of_each_index() -> None:
    begin, end = 3 * 2**16 - 5, 6 * 2**16 + 5
    assert words_of_run(make_key(2), begin, end).tolist() == words(make_key(2), numel=end - begin, start=begin).tolist()


def test_every_word_occurs_once_for_every_index() -> None:
    # The hash is a bijection of 32-bit words, so within 2**32 indexes no word repeats.
    some = words(make_key(3), numel=200_000)
    assert len(set(some.tolist())) == len(some)


def test_the_zero_key_is_the_finalizer_itself() -> None:
    assert words(Key(0, 0), numel=2).tolist() == [0, 0x514E28B7]
    # Four elements each: the bytes 0, 0, 0, 0 and B7, 28, 4E, 51, lowest first.
    drawn = [
        keep_mask(Key(0, 0), 0, bound / 256, torch.empty(8)).tolist() for bound in (1, 0x29, 0x4F, 0x52, 0xB7, 0xB8)
    ]
    assert drawn == [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 1, 0],
        [1, 1, 1, 1, 0, 1, 1, 1],
        [1, 1, 1, 1, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]


def test_both_halves_of_a_key_change_every_word() -> None:
    drawn = [words(key, numel=1000) for key in (Key(0, 0), Key(1, 0), Key(0, 1), Key(2**31, 0), Key(0, 2**31))]
    for first, second in itertools.combinations(drawn, 2):
        assert (first == second).sum() == 0


@pytest.mark.parametrize("start", [0, 2**31 - 7, 2**32 - 100])
def test_torch_computes_the_same_words_as_numpy(start: int) -> None:
    # The code for GPUs, run here: the same bits, read as signed numbers.
    key = make_key(3, "w")
    signed = signed_words(key.first, key.second, torch.arange(start, start + 100)).tolist()
    assert [word % 2**32 for word in signed] == words(key, numel=100, start=start).tolist()


@pytest.mark.parametrize("start", [0, 1, 2, 3, 2**31 - 1001, 2**32 - 3001])
@pytest.mark.parametrize(("first", "rest"), [(0, 1), (0, 2**31), (51, 858993459), (128, 0), (255, 2**32 - 1)])
def test_torch_draws_the_same_elements_as_numpy(start: int, first: int, rest: int) -> None:
    here, there = torch.empty(3001), torch.empty(3001)
    key, own = make_key(1, "w"), make_key(2, "w")
    keys = (key.first, key.second, own.first, own.second)
    NumpyBackend().draw(None, keys, start, first, rest, here.numpy())
    TorchBackend("cpu").draw(None, keys, start, first, rest, there)
    assert torch.equal(here, there)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.3, 0.5, 0.9, 1 - 1e-9, 1.0])
def test_the_masks_of_a_gpu_are_those_of_the_cpu(density: float) -> None:
    key = make_key(0, 0, "a")
    for start in (0, 2**31 - 1000, 2**32 - 1000):
        there = keep_mask(key, start, density, torch.empty(100_000, device="cuda"))
        assert there.is_cuda
        assert torch.equal(there.cpu(), keep_mask(key, start, density, torch.empty(100_000)))


# --- position ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 2**31 - 500, 2**32 - 500])
def test_a_mask_does_not_depend_on_the_cut_into_blocks(start: int) -> None:
    whole = mask("k", density=0.3, numel=1000, start=start)
    parts = [mask("k", density=0.3, numel=size, start=start + at) for at, size in ((0, 1), (1, 499), (500, 500))]
    assert torch.equal(whole, torch.cat(parts))


def test_beyond_four_billion_elements_masks_do_not_repeat() -> None:
    first, second, third = (mask("k", density=0.5, start=epoch * 2**32) for epoch in range(3))
    assert within(first * second, 0.25)
    assert within(first * third, 0.25)
    assert within(second * third, 0.25)


def test_a_higher_density_keeps_everything_that_a_lower_one_keeps() -> None:
    low, high = mask("k", density=0.2), mask("k", density=0.6)
    assert bool((high >= low).all())


# --- density ----------------------------------------------------------------------------------------------------------


def index_of(word: int, key: Key) -> int:
    """Return the index that has this word under a key."""
    word ^= word >> 16
    word = word * pow(0xC2B2AE35, -1, 2**32) % 2**32
    word ^= word >> 13 ^ word >> 26
    word = (word ^ key.second) * pow(0x85EBCA6B, -1, 2**32) % 2**32
    return word ^ word >> 16 ^ key.first


def element_that_draws(byte: int, word: int) -> tuple[Key, int]:
    """Return a key and the index of an element that draws these bits under it."""
    for seed in itertools.count():
        key = make_key(seed)
        index = index_of(word, make_key(key.first, key.second, "own"))
        if oracle.drawn_bits((seed,), index) == (byte, word):
            return key, index
    raise AssertionError


def test_density_one_keeps_all_and_zero_none_without_exception() -> None:
    assert mask("k", density=1.0).sum() == NUMEL
    assert mask("k", density=0.0).sum() == 0
    # The element that any positive density keeps, and the one that any below 1 drops.
    key, index = element_that_draws(0, 0)
    kept = [keep_mask(key, index, density, torch.empty(1)).item() for density in (0.0, 2**-42, 2**-40, 0.5, 1.0)]
    assert kept == [0, 0, 1, 1, 1]
    key, index = element_that_draws(255, 2**32 - 1)
    kept = [keep_mask(key, index, density, torch.empty(1)).item() for density in (0.0, 0.5, 1 - 2**-40, 1.0)]
    assert kept == [0, 0, 0, 1]


def within(ones: Tensor, probability: float, sigmas: float = 4) -> bool:
    """Whether the mean is that of independent draws, within some standard deviations."""
    deviation = math.sqrt(probability * (1 - probability) / ones.numel())
    return abs(float(ones.double().mean()) - probability) <= sigmas * deviation


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(4))
def test_the_kept_fraction_is_the_density(density: float, seed: int) -> None:
    assert within(mask(seed, 0, "w", density=density), density)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_short_runs_keep_as_many_as_independent_draws(density: float) -> None:
    # The number kept in runs of 64 must also have the variance of a binomial distribution: 64 p (1 - p).
    kept = mask(0, 0, "w", density=density).reshape(-1, 64).sum(dim=1).double()
    runs = len(kept)
    expected = 64 * density * (1 - density)
    assert abs(float(kept.var()) / expected - 1) <= 4 * math.sqrt(2 / runs)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75])
def test_elements_that_their_first_byte_leaves_open_are_kept_by_their_share(share: float) -> None:
    numel = 2**20
    below, between, above = (mask(4, density=(51 + s) / 256, numel=numel) for s in (0, share, 1))
    open_ones = above > below
    assert within(open_ones.float(), 1 / 256)
    assert within(between[open_ones], share)


@pytest.mark.parametrize("place", range(4))
def test_each_byte_of_the_words_falls_evenly_into_256_bins(place: int) -> None:
    drawn = words(make_key(9), numel=NUMEL) >> np.uint32(8 * place) & np.uint32(255)
    counts = np.bincount(drawn, minlength=256)
    expected = NUMEL / 256
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - 255) <= 4 * math.sqrt(2 * 255)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(range(4), 2)))
def test_elements_that_share_a_word_are_drawn_independently(one: int, other: int) -> None:
    # Four bits of each of two bytes give 256 pairs, which are all equally likely.
    drawn = words(make_key(10), numel=NUMEL)
    high = [drawn >> np.uint32(8 * place + 4) & np.uint32(15) for place in (one, other)]
    counts = np.bincount(high[0] * 16 + high[1], minlength=256)
    expected = NUMEL / 256
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - 255) <= 4 * math.sqrt(2 * 255)


# --- independence -----------------------------------------------------------------------------------------------------

REFERENCE = (0, 0, "layers.0.weight")
OTHERS = {
    "seed": (1, 0, "layers.0.weight"),
    "model": (0, 1, "layers.0.weight"),
    "tensor": (0, 0, "layers.1.weight"),
}


def test_the_same_seed_model_and_tensor_have_the_same_mask() -> None:
    assert torch.equal(mask(*REFERENCE, density=0.4), mask(*REFERENCE, density=0.4))


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_another_seed_model_or_tensor_has_an_independent_mask(what: str, density: float) -> None:
    overlap = mask(*REFERENCE, density=density) * mask(*OTHERS[what], density=density)
    assert within(overlap, density**2)


@pytest.mark.parametrize("what", ["itself", *OTHERS])
def test_no_mask_is_a_shifted_copy_of_another(what: str) -> None:
    first = mask(*REFERENCE, density=0.5)
    second = mask(*OTHERS.get(what, REFERENCE), density=0.5)
    # Of a mask with itself, neighbouring products share an element, which makes their mean vary 1.3 times as much.
    sigmas = 5.5 if what == "itself" else 4.5
    shifts = [1, 2, 3, 4, 7, 8, 16, 64, 100, 256, 1000, 4096, 16384, 16385, 65536]
    for shift in shifts:
        assert within(first[shift:] * second[:-shift], 0.25, sigmas), shift
        assert within(first[:-shift] * second[shift:], 0.25, sigmas), shift


@pytest.mark.parametrize("what", ["itself", *OTHERS])
def test_no_mask_is_another_with_elements_swapped_by_a_power_of_two(what: str) -> None:
    # The key enters by xor, so a copy would show where index i meets index i xor constant.
    first = mask(*REFERENCE, density=0.5)
    second = mask(*OTHERS.get(what, REFERENCE), density=0.5)
    index = torch.arange(NUMEL)
    for bit in range(17):
        pairs = first * second[index ^ (1 << bit)]
        if what == "itself":
            # Every pair is there twice.
            pairs = pairs[(index >> bit) & 1 == 0]
        assert within(pairs, 0.25, 4.5), bit


def test_keys_differ_in_both_halves() -> None:
    keys = [make_key(seed, model, name) for seed in range(20) for model in range(5) for name in ("a", "b", "a.b")]
    assert len({key.first for key in keys}) == len(keys)
    assert len({key.second for key in keys}) == len(keys)


def test_parts_of_a_key_are_kept_apart() -> None:
    assert make_key("ab", "c") != make_key("a", "bc")
    assert make_key(1, 23) != make_key(12, 3)
