"""Random masks, against the same hash in Python's integers and against statistics."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from merge_cli.kernels import Key, keep_mask, make_key
from merge_cli.kernels.randomness import _signed_words, random_words
from tests import oracle

CPU = torch.device("cpu")
NUMEL = 2**18


def mask(*parts: str | int, density: float, numel: int = NUMEL, start: int = 0) -> Tensor:
    return keep_mask(make_key(*parts), start, numel, density, CPU)


def words(*parts: str | int, numel: int, start: int = 0) -> list[int]:
    return random_words(make_key(*parts), start, numel).tolist()


# --- the hash ---------------------------------------------------------------------------------------------------------


def test_the_reference_is_the_finalizer_of_murmurhash3() -> None:
    # MurmurHash3_x86_32 of nothing is the finalizer of its seed; these three are published with its tests.
    assert oracle.fmix32(0) == 0
    assert oracle.fmix32(1) == 0x514E28B7
    assert oracle.fmix32(0xFFFFFFFF) == 0x81F16F39


@pytest.mark.parametrize(
    "parts", [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "model.layers.0.mlp.weight"), ("Ω", 7)]
)
@pytest.mark.parametrize("start", [0, 1, 16384, 2**31 - 3, 2**31, 2**32 - 4, 2**32, 3 * 2**32 - 2])
def test_words_are_those_of_the_reference_in_plain_integers(parts: tuple[str | int, ...], start: int) -> None:
    assert words(*parts, numel=20, start=start) == oracle.random_words(parts, 20, start=start)


@pytest.mark.parametrize("density", [0.0, 1e-12, 0.001, 0.25, 0.5, 0.9, 1 - 1e-12, 1.0])
def test_masks_are_those_of_the_reference(density: float) -> None:
    got = mask(5, 0, "x", density=density, numel=500)
    assert got.dtype == torch.float32
    assert got.tolist() == oracle.keep_mask((5, 0, "x"), 500, density)


def test_every_word_occurs_once_for_every_index() -> None:
    # The hash is a bijection of 32-bit words, so within 2**32 elements no word repeats.
    some = words(3, numel=200_000)
    assert len(set(some)) == len(some)


def test_the_zero_key_is_the_finalizer_itself() -> None:
    # Zero is a fixed point of it, so the first element is kept at any density above zero.
    assert random_words(Key(0, 0), 0, 2).tolist() == [0, 0x514E28B7]
    assert keep_mask(Key(0, 0), 0, 1, 2**-32, CPU).tolist() == [1]
    assert keep_mask(Key(0, 0), 0, 1, 2**-34, CPU).tolist() == [0]


def test_both_halves_of_a_key_change_every_word() -> None:
    drawn = [random_words(key, 0, 1000) for key in (Key(0, 0), Key(1, 0), Key(0, 1), Key(2**31, 0), Key(0, 2**31))]
    for first, second in itertools.combinations(drawn, 2):
        assert (first == second).sum() == 0


@pytest.mark.parametrize("start", [0, 2**31 - 7, 2**32 - 9])
def test_torch_computes_the_same_words_as_numpy(start: int) -> None:
    # The code for GPUs, run here: the same bits, read as signed numbers.
    key = make_key(3, "w")
    signed = _signed_words(key, start, 100, CPU).tolist()
    assert [word % 2**32 for word in signed] == random_words(key, start, 100).tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.3, 0.5, 0.9, 1 - 1e-9, 1.0])
def test_the_masks_of_a_gpu_are_those_of_the_cpu(density: float) -> None:
    key, device = make_key(0, 0, "a"), torch.device("cuda")
    for start in (0, 2**31 - 1000, 2**32 - 1000):
        there = keep_mask(key, start, 100_000, density, device)
        assert there.is_cuda
        assert torch.equal(there.cpu(), keep_mask(key, start, 100_000, density, CPU))


# --- position ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 2**31 - 500, 2**32 - 500])
def test_a_mask_does_not_depend_on_the_cut_into_blocks(start: int) -> None:
    whole = mask("k", density=0.3, numel=1000, start=start)
    parts = [mask("k", density=0.3, numel=size, start=start + at) for at, size in ((0, 1), (1, 499), (500, 500))]
    assert torch.equal(whole, torch.cat(parts))


def test_beyond_four_billion_elements_masks_do_not_repeat() -> None:
    first = words("k", numel=1000)
    assert words("k", numel=1000, start=2**32) != first
    assert words("k", numel=1000, start=2 * 2**32) not in (first, words("k", numel=1000, start=2**32))
    overlap = mask("k", density=0.5) * mask("k", density=0.5, start=2**32)
    assert within(overlap, 0.25)


def test_a_higher_density_keeps_everything_that_a_lower_one_keeps() -> None:
    low, high = mask("k", density=0.2), mask("k", density=0.6)
    assert bool((high >= low).all())


# --- density ----------------------------------------------------------------------------------------------------------


def index_of(word: int) -> int:
    """Return the index whose word under the zero key this is."""
    word ^= word >> 16
    word = word * pow(0xC2B2AE35, -1, 2**32) % 2**32
    word ^= word >> 13 ^ word >> 26
    word = word * pow(0x85EBCA6B, -1, 2**32) % 2**32
    return word ^ word >> 16


def test_density_one_keeps_all_and_zero_none_without_exception() -> None:
    assert mask("k", density=1.0).sum() == NUMEL
    assert mask("k", density=0.0).sum() == 0
    zero = Key(0, 0)
    smallest, largest = index_of(0), index_of(2**32 - 1)
    assert random_words(zero, smallest, 1).tolist() == [0]
    assert random_words(zero, largest, 1).tolist() == [2**32 - 1]
    # The element that any positive density keeps, and the one that any below 1 drops.
    assert [keep_mask(zero, smallest, 1, density, CPU).item() for density in (0.0, 2**-32, 0.5, 1.0)] == [0, 1, 1, 1]
    assert [keep_mask(zero, largest, 1, density, CPU).item() for density in (0.0, 0.5, 1 - 2**-32, 1.0)] == [0, 0, 0, 1]


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


def test_words_fall_evenly_into_256_bins_by_their_first_and_their_last_bits() -> None:
    drawn = torch.tensor(words(9, numel=NUMEL))
    for bins in (drawn >> 24, drawn & 255):
        counts = torch.bincount(bins, minlength=256).double()
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
