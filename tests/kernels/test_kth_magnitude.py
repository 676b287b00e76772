"""The k-th largest magnitude of a vector seen in pieces, against sorting."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_cli.kernels.kth_magnitude import (
    CollectAll,
    CountInBracket,
    SampleFirst,
    combine,
    count_kept,
    last_rank,
    refine,
    sample_size,
    start,
    threshold_of,
    update,
)

SMALLEST = 2.0**-149  # the smallest positive float32, a denormal number
LARGEST = (2 - 2.0**-23) * 2.0**127

Choose = Callable[[list[Tensor]], list[Tensor]]


def all_of(pieces: list[Tensor]) -> list[Tensor]:
    return pieces


def found(
    values: Sequence[float],
    density: float,
    *,
    cuts: Sequence[int] = (),
    most_collected: int = 0,
    sampled: Choose = all_of,
) -> float:
    """Search as a measure does: take in every piece or a sample of them, combine, look again, until a number is left.

    Args:
        values: The vector.
        density: Fraction to keep.
        cuts: Where it is cut into pieces.
        most_collected: Vectors up to this length are collected, longer ones sampled and counted.
        sampled: Which pieces a sample is taken from.
    """
    row = torch.tensor(values, dtype=torch.float32)
    pieces = list(torch.tensor_split(row, sorted(cut % (len(values) + 1) for cut in cuts)))
    rank = last_rank(len(values), count_kept(len(values), density))
    search = start(rank, len(values), most_collected=most_collected)
    rounds = 0
    while not isinstance(search, float):
        seen = sampled(pieces) if sample_size(search) else pieces
        # The even pieces grow one part and the odd ones another, as two threads would.
        parts = []
        for share in (seen[::2], seen[1::2]):
            part = None
            for piece in share:
                part = update(search, part, piece)
            if part is not None:
                parts.append(part)
        search = refine(search, combine(*parts) if len(parts) == 2 else parts[0])
        rounds += 1
        assert rounds < 10
    return search


def by_sorting(values: Sequence[float], density: float) -> float:
    kept = max(1, int(density * len(values))) if density > 0 else 0
    if kept >= len(values):
        return 0.0
    return sorted(map(abs, values))[-kept] if kept else math.inf


any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
few_values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, SMALLEST, -SMALLEST, 3 * SMALLEST, LARGEST])
vectors = st.one_of(st.lists(any_float, min_size=1, max_size=40), st.lists(few_values, min_size=1, max_size=40))
ways = pytest.mark.parametrize("most_collected", [10**6, 0], ids=["collected", "counted"])


@ways
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(vectors, st.floats(0, 1), st.lists(st.integers(0, 40), max_size=3))
def test_the_search_finds_what_sorting_finds_however_the_vector_is_cut(
    most_collected: int, values: list[float], density: float, cuts: list[int]
) -> None:
    assert found(values, density, cuts=cuts, most_collected=most_collected) == by_sorting(values, density)


@ways
@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.0, math.inf),
        (1e-9, 5.0),
        (0.19, 5.0),
        (0.2, 5.0),
        (0.4, 4.0),
        (0.6, 3.0),
        (0.8, 2.0),
        (0.99, 2.0),
        (1.0, 0.0),
    ],
)
def test_density_keeps_its_whole_part_of_the_number_of_entries_and_at_least_one(
    most_collected: int, density: float, expected: float
) -> None:
    # int(0.19 · 5) = 0 entries, so one; int(0.99 · 5) = 4.
    assert found([1, -5, 3, -2, 4], density, most_collected=most_collected) == expected


@ways
def test_a_single_entry_is_kept_by_any_density_but_zero(most_collected: int) -> None:
    assert found([7.0], 1.0, most_collected=most_collected) == 0.0
    assert found([7.0], 0.001, most_collected=most_collected) == 0.0
    assert found([7.0], 0.0, most_collected=most_collected) == math.inf


@ways
def test_equal_magnitudes_share_one_threshold(most_collected: int) -> None:
    assert found([2, -2, 2, 1, -1], 0.2, most_collected=most_collected) == 2.0
    assert found([2, -2, 2, 1, -1], 0.6, most_collected=most_collected) == 2.0
    assert found([2, -2, 2, 1, -1], 0.8, most_collected=most_collected) == 1.0


@ways
def test_a_threshold_among_zeros_is_zero(most_collected: int) -> None:
    assert found([0.0, 3.0, -0.0, 0.0], 0.5, most_collected=most_collected) == 0.0


@ways
def test_denormal_numbers_are_told_apart(most_collected: int) -> None:
    values = [SMALLEST, -2 * SMALLEST, 3 * SMALLEST, 0.0]
    assert found(values, 0.25, most_collected=most_collected) == 3 * SMALLEST
    assert found(values, 0.5, most_collected=most_collected) == 2 * SMALLEST
    assert found(values, 0.75, most_collected=most_collected) == SMALLEST


@ways
def test_neighbouring_floats_are_told_apart(most_collected: int) -> None:
    above_one = 1 + 2.0**-23
    assert found([1.0, above_one, -above_one, 0.5], 0.5, most_collected=most_collected) == above_one
    assert found([1.0, above_one, -above_one, 0.5], 0.75, most_collected=most_collected) == 1.0


@ways
def test_the_largest_float_and_infinity_are_magnitudes_like_others(most_collected: int) -> None:
    assert found([LARGEST, 1.0, -math.inf], 1 / 3, most_collected=most_collected) == math.inf
    assert found([LARGEST, 1.0, -math.inf], 2 / 3, most_collected=most_collected) == LARGEST


def spread_out(numel: int) -> list[float]:
    """Distinct magnitudes over many binades, in an order without pattern, signs alternating."""
    row = torch.randperm(numel, generator=torch.Generator().manual_seed(1)).float().add(1).mul(1e-6)
    row[::2] *= -1
    return row.tolist()


@ways
@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.9, 0.9999])
def test_a_long_vector_keeps_exactly_the_whole_part_where_no_two_are_alike(most_collected: int, density: float) -> None:
    values = spread_out(50_021)
    threshold = found(values, density, cuts=[16384, 32768, 49152], most_collected=most_collected)
    assert sum(abs(x) >= threshold for x in values) == int(density * len(values))


# A sample may decide how long the search takes, and nothing else.
MISLEADING: dict[str, Choose] = {
    "a fair piece": lambda pieces: pieces[1:2],
    "the smallest entries": lambda pieces: [torch.cat(pieces).abs().sort().values[:50]],
    "the largest entries": lambda pieces: [torch.cat(pieces).abs().sort().values[-50:]],
    "zeros that do not occur": lambda pieces: [torch.zeros(1000)],
    "a single entry": lambda pieces: [pieces[0][:1]],
}


@pytest.mark.parametrize("which", MISLEADING)
@pytest.mark.parametrize("density", [0.0005, 0.2, 0.5, 0.9995])
def test_a_sample_that_misleads_does_not_change_the_threshold(which: str, density: float) -> None:
    values = spread_out(4001)
    threshold = found(values, density, cuts=[1000, 2000], sampled=MISLEADING[which])
    assert threshold == by_sorting(values, density)


@pytest.mark.parametrize("which", MISLEADING)
def test_a_sample_of_a_vector_with_few_values_does_not_mislead_either(which: str) -> None:
    values = [0.0] * 3000 + [0.25] * 900 + [-0.5] * 90 + [8.0] * 10
    for density, expected in ((0.001, 8.0), (0.0025, 8.0), (0.01, 0.5), (0.2, 0.25), (0.3, 0.0)):
        assert found(values, density, cuts=[1000, 2000], sampled=MISLEADING[which]) == expected


def test_whatever_bracket_a_sample_gives_the_search_goes_on_to_the_right_entry() -> None:
    # The wanted entry may lie inside, above or below, also as the nearest one outside.
    row = torch.tensor([0.0, 1.0, -2.0, 2.0, 3.0, -4.0])
    edges = [0, *(struct.unpack("<I", struct.pack("<f", x))[0] for x in (1, 2, 3)), 2**31]
    for low, high in itertools.combinations(edges, 2):
        for rank, expected in enumerate([4, 3, 2, 2, 1, 0], start=1):
            search: Any = CountInBracket(rank, low, high)
            for _ in range(8):
                search = refine(search, update(search, None, row))
                if isinstance(search, float):
                    break
            assert search == expected, (low, high, rank)


def test_entries_that_pile_up_within_one_wide_bin_are_resolved() -> None:
    values = [1 + k * 2.0**-23 for k in range(1000)] + [2.0**100, 2.0**-100]
    # The 102nd largest of these 1002: 2**100 is first, 1 + 999 eps second.
    assert found(values, 0.102, sampled=MISLEADING["zeros that do not occur"]) == 1 + 899 * 2.0**-23


def test_more_than_two_billion_equal_entries_are_counted() -> None:
    # Frozen layers give a large model billions of zero deltas; here every zero stands for 2**30 of them.
    search = CountInBracket(rank=2**33, low=0, high=2**12)
    parts = [update(search, None, torch.zeros(4)) for _ in range(2)]
    for part in parts:
        part.counts *= 2**30
    assert refine(search, combine(*parts)) == 0.0


def test_what_is_too_much_to_hold_is_counted_in_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seven patterns may be held. Of three pieces one has more, and two together have.
    monkeypatch.setattr("merge_cli.kernels.kth_magnitude._MOST_INSIDE", 7)
    values = [float(x) for x in range(1, 31)]
    search: Any = CountInBracket(12, 0, 2**31)
    for _ in range(8):
        pieces = [update(search, None, torch.tensor(values)[cut]) for cut in (slice(3), slice(3, 9), slice(9, 30))]
        search = refine(search, combine(combine(pieces[0], pieces[1]), pieces[2]))
        if isinstance(search, float):
            break
    assert search == 19.0


def test_pieces_are_not_modified() -> None:
    row = torch.tensor([3.0, -1.0, 2.0])
    for search in (CollectAll(1), SampleFirst(1, 3), CountInBracket(1, 0, 2**31)):
        update(search, None, row)
    assert row._version == 0
    assert row.tolist() == [3.0, -1.0, 2.0]


@given(any_float.map(abs))
@settings(max_examples=50, deadline=None, database=None, derandomize=True)
def test_a_bit_pattern_stands_for_its_number(value: float) -> None:
    assert threshold_of(struct.unpack("<I", struct.pack("<f", value))[0]) == value


def test_no_round_is_needed_to_keep_all_or_none() -> None:
    assert start(last_rank(10, count_kept(10, 1.0)), 10, most_collected=100) == 0.0
    assert start(last_rank(10, count_kept(10, 0.0)), 10, most_collected=100) == math.inf


def test_only_a_vector_that_is_too_long_is_sampled() -> None:
    assert start(5, 10, most_collected=10) == CollectAll(5)
    assert start(10, 10, most_collected=10) == CollectAll(10)
    assert start(count_kept(11, 0.5), 11, most_collected=10) == SampleFirst(5, 11)
    assert sample_size(CollectAll(5)) == 0
    assert sample_size(SampleFirst(5, 11)) > 0
    assert sample_size(CountInBracket(1, 0, 10)) == 0
