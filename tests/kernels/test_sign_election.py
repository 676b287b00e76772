"""Electing signs and merging the entries that agree, on numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from merge_cli.kernels import disjoint_merge, elect_sign

# Each column is one element of three weighted task vectors, with what it elects:
#   value of each model   mass   count   what it shows
TABLE = [
    ((3.0, -1.0, -1.0), 1, -1),  # the sum and the number of heads disagree
    ((-3.0, 1.0, 1.0), -1, 1),
    ((1.0, 2.0, 3.0), 1, 1),  # all agree
    ((-1.0, -2.0, -3.0), -1, -1),
    ((0.0, 0.0, -0.5), -1, -1),  # zeros have no vote
    ((0.0, 2.0, -0.5), 1, 0),  # one against one is a tie of heads
    ((2.0, -1.0, -1.0), 0, -1),  # a tie of mass
    ((1.0, -1.0, 0.0), 0, 0),  # a tie of both
    ((0.0, 0.0, 0.0), 0, 0),  # nobody votes
]
ROWS = torch.tensor([values for values, _, _ in TABLE]).T.contiguous()
MASS = [mass for _, mass, _ in TABLE]
COUNT = [count for _, _, count in TABLE]


def plus_for_zero(signs: list[int]) -> list[int]:
    return [sign or 1 for sign in signs]


def test_mass_takes_the_sign_of_the_sum_and_leaves_ties_to_nobody() -> None:
    assert elect_sign(ROWS, by="mass", zero_sum="none").tolist() == MASS


def test_count_takes_the_sign_of_the_majority_and_leaves_ties_to_nobody() -> None:
    assert elect_sign(ROWS, by="count", zero_sum="none").tolist() == COUNT


def test_a_tie_elects_plus_where_it_is_asked_to() -> None:
    assert elect_sign(ROWS, by="mass", zero_sum="plus").tolist() == plus_for_zero(MASS)
    assert elect_sign(ROWS, by="count", zero_sum="plus").tolist() == plus_for_zero(COUNT)


@pytest.mark.parametrize("by", ["mass", "count"])
@pytest.mark.parametrize("zero_sum", ["plus", "none"])
def test_electing_leaves_the_task_vectors_as_they_are(by: str, zero_sum: str) -> None:
    rows = ROWS.clone()
    elect_sign(rows, by=by, zero_sum=zero_sum)  # type: ignore[arg-type]
    assert rows._version == 0


def test_denormal_numbers_vote_by_their_sign() -> None:
    tiny = 2.0**-149
    assert elect_sign(torch.tensor([[-tiny], [0.0]]), by="mass", zero_sum="plus").item() == -1
    assert elect_sign(torch.tensor([[tiny], [0.0]]), by="mass", zero_sum="none").item() == 1


# Two models of weights 2 and 1. Each column is one element: the deltas, and what the weighted entries come to.
#   weighted 6, 5: both agree · 6, -4: the first is stronger · -2, 4: the second is · 0, -7: one is trimmed · 0, 0
WEIGHTS = [2.0, 1.0]
DELTAS = torch.tensor([[3.0, 3.0, -1.0, 0.0, 0.0], [5.0, -4.0, 4.0, -7.0, 0.0]])


def merge(deltas: Tensor, weights: list[float], **options: Any) -> list[float]:
    choices = {"by": "mass", "zero_sum": "none", "normalize": True, **options}
    return disjoint_merge(deltas * torch.tensor(weights)[:, None], weights, **choices).tolist()


def test_a_disjoint_merge_sums_the_weighted_entries_that_agree() -> None:
    assert merge(DELTAS, WEIGHTS, normalize=False) == [11.0, 6.0, 4.0, -7.0, 0.0]


def test_a_normalized_one_divides_by_the_weights_of_the_models_that_agree() -> None:
    # 11 / (2 + 1), 6 / 2, 4 / 1, -7 / 1, and 0 where nobody agrees.
    assert merge(DELTAS, WEIGHTS) == pytest.approx([11 / 3, 3.0, 4.0, -7.0, 0.0])


def test_counting_heads_can_elect_the_lighter_side() -> None:
    deltas = torch.tensor([[3.0], [-1.0], [-1.5]])
    assert merge(deltas, [1.0, 1.0, 1.0], by="mass") == [3.0]
    assert merge(deltas, [1.0, 1.0, 1.0], by="count") == [-1.25]


def test_equal_and_opposite_entries_give_nothing_or_the_positive_one() -> None:
    deltas = torch.tensor([[2.0], [-2.0]])
    assert merge(deltas, [1.0, 1.0], zero_sum="none") == [0.0]
    assert merge(deltas, [1.0, 1.0], zero_sum="plus") == [2.0]


def test_nothing_is_divided_where_the_weights_of_those_who_agree_cancel() -> None:
    # Weight -1 turns -3 into 3, which agrees with 2; 1 + (-1) is no divisor.
    assert merge(torch.tensor([[2.0], [-3.0]]), [1.0, -1.0]) == [5.0]


def test_a_negative_weight_counts_as_one_in_the_divisor() -> None:
    # One model of weight -2 and delta 3: the weighted entry -6 over -2 is the delta again.
    assert merge(torch.tensor([[3.0]]), [-2.0]) == [3.0]


def test_a_model_of_weight_zero_is_not_there() -> None:
    assert merge(torch.tensor([[3.0], [-9.0]]), [1.0, 0.0]) == [3.0]
    assert merge(torch.tensor([[3.0], [-9.0]]), [0.0, 0.0]) == [0.0]


def test_small_weights_are_divided_by_like_large_ones() -> None:
    assert merge(DELTAS, [2e-4, 1e-4]) == pytest.approx([11 / 3, 3.0, 4.0, -7.0, 0.0])
