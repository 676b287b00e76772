"""Finding the few true elements of a mask, against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from merge_cli.kernels.numpy_backend import true_indexes


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 64, 1003])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_the_indexes_are_those_of_the_true_elements_in_order(numel: int, share: float) -> None:
    mask = np.random.default_rng(numel).random(numel) < share
    assert true_indexes(mask).tolist() == [index for index, true in enumerate(mask) if true]


@pytest.mark.parametrize("offset", range(9))
def test_a_mask_may_begin_anywhere_in_a_longer_one(offset: int) -> None:
    mask = np.zeros(100, dtype=np.bool_)
    mask[[offset, offset + 11, 99]] = True
    assert true_indexes(mask[offset:]).tolist() == [0, 11, 99 - offset]
