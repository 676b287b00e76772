import math

import torch

from merge_cli.mismatch import squared_norm


def test_the_norm_counts_each_square_by_the_curvature_and_nothing_where_nothing_differs() -> None:
    # 2² / 4 + 3² / 2 + nothing.
    assert squared_norm(torch.tensor([2.0, -3.0, 0.0]), torch.tensor([4.0, 2.0, 0.0])) == 5.5


def test_a_difference_where_there_is_no_curvature_is_infinitely_far() -> None:
    assert squared_norm(torch.tensor([1.0]), torch.tensor([0.0])) == math.inf
