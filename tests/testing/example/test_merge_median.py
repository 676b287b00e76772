"""The median keeps the contract; the oracle is its definition once more, over plain numbers."""

import merge_median
import pytest

from merge_cli.testing import Check, PlainTensor, method_checks, per_tensor


@per_tensor
def oracle(tensor: PlainTensor, params: object) -> list[float]:
    return [sorted(numbers)[1] for numbers in zip(*tensor.models, strict=True)]


@pytest.mark.parametrize("check", method_checks(merge_median.METHOD, oracle=oracle), ids=str)
def test_the_median_keeps_the_rules(check: Check) -> None:
    check()
