"""Sums over models and over elements, which no cut into blocks may change."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from merge_cli.kernels import GRAIN, chunk_gram, chunk_sums, fsum_rows, sum_models, weight_sum_or_one, weighted_sum


def test_models_are_added_with_their_weights() -> None:
    rows = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    assert sum_models(rows).tolist() == [111.0, 222.0]
    assert weighted_sum(rows, [3, -1, 0.5]).tolist() == [43.0, 86.0]


def test_one_model_is_added_to_nothing() -> None:
    rows = torch.tensor([[1.0, 2.0]])
    assert sum_models(rows).tolist() == [1.0, 2.0]
    assert weighted_sum(rows, [2]).tolist() == [2.0, 4.0]


def test_sums_are_new_tensors() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for result in (sum_models(rows[:1]), weighted_sum(rows[:1], [1.0]), sum_models(rows), weighted_sum(rows, [1, 1])):
        result.zero_()
    assert rows.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_rows_and_weights_must_match() -> None:
    with pytest.raises(ValueError, match="3 rows and 2 weights"):
        weighted_sum(torch.ones(3, 2), [1.0, 2.0])


@pytest.mark.parametrize("n", [4, 5, 8, 9, 17])
def test_a_sum_over_models_does_not_depend_on_how_many_columns_a_block_has(n: int) -> None:
    rows = torch.randn(n, 80, generator=torch.Generator().manual_seed(n))
    weights = torch.randn(n, generator=torch.Generator().manual_seed(1)).tolist()
    for columns in range(1, 80):
        part = rows[:, :columns].contiguous()
        assert torch.equal(sum_models(part), sum_models(rows)[:columns])
        assert torch.equal(weighted_sum(part, weights), weighted_sum(rows, weights)[:columns])


def test_models_are_added_in_their_order() -> None:
    # 2**24 + 1 is no float32, so only the order from the left gives 2**24 here.
    big = 2.0**24
    assert sum_models(torch.tensor([[big], [1.0], [1.0]])).item() == big
    assert sum_models(torch.tensor([[1.0], [1.0], [big]])).item() == big + 2


def test_weights_are_divided_by_unless_they_cancel() -> None:
    assert weight_sum_or_one([0.5, 1.5]) == 2.0
    assert weight_sum_or_one([-1.0, -2.0]) == -3.0
    assert weight_sum_or_one([1.0, -1.0]) == 1.0
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in floating point.
    assert weight_sum_or_one([0.1, 0.2, -0.3]) == 1.0
    assert weight_sum_or_one([1e-7]) == 1e-7


def test_elements_are_summed_grain_by_grain() -> None:
    rows = torch.stack([torch.ones(2 * GRAIN + 3), torch.full((2 * GRAIN + 3,), 2.0)])
    sums = chunk_sums(rows)
    assert sums.dtype == torch.float64
    assert sums.tolist() == [[GRAIN, GRAIN, 3], [2 * GRAIN, 2 * GRAIN, 6]]


@pytest.mark.parametrize("numel", [1, GRAIN - 1, GRAIN, GRAIN + 1])
def test_there_is_a_grain_for_every_begun_run(numel: int) -> None:
    assert chunk_sums(torch.ones(1, numel)).shape == (1, -(-numel // GRAIN))


@pytest.mark.parametrize("numel", [1, GRAIN, 2 * GRAIN + 3])
def test_squares_and_products_are_summed_grain_by_grain_in_float64(numel: int) -> None:
    generator = torch.Generator().manual_seed(numel)
    first, second = torch.randn(2, numel, generator=generator)
    found = chunk_gram(first, second)
    assert found.shape == (3, -(-numel // GRAIN))
    for sums, one, other in zip(found, (first, second, first), (first, second, second), strict=True):
        products = [p * q for p, q in zip(one.tolist(), other.tolist(), strict=True)]
        exact = [math.fsum(products[at : at + GRAIN]) for at in range(0, numel, GRAIN)]
        assert sums.tolist() == pytest.approx(exact, rel=1e-12, abs=1e-9)


def test_a_sum_over_elements_is_exact_and_in_any_order_the_same() -> None:
    for order in itertools.permutations((1e16, 1.0, -1e16, 2.0**-60)):
        assert fsum_rows([order]) == [1.0 + 2.0**-60] == [1.0]
    assert fsum_rows([[0.1] * 10, [1.0] * 10]) == [1.0, 10.0]


def test_a_sum_over_elements_does_not_depend_on_the_cut_into_blocks() -> None:
    rows = torch.randn(3, 3 * GRAIN + 17, generator=torch.Generator().manual_seed(0))
    whole = fsum_rows(chunk_sums(rows).tolist())
    for step in (GRAIN, 2 * GRAIN):
        blocks = [chunk_sums(rows[:, at : at + step].contiguous()) for at in range(0, rows.shape[1], step)]
        assert fsum_rows(torch.cat(blocks, dim=1).tolist()) == whole
        assert fsum_rows(torch.cat(blocks[::-1], dim=1).tolist()) == whole


def test_float32_numbers_are_summed_in_float64() -> None:
    # In float32 ten thousand additions of 1 to 2**24 would all be lost.
    row = torch.ones(1, 10_001)
    row[0, 0] = 2.0**24
    assert fsum_rows(chunk_sums(row).tolist()) == [2.0**24 + 10_000]
