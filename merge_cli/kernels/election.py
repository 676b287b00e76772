"""Electing one sign per element, and who agrees with it."""

from typing import Literal

import torch
from torch import Tensor

from merge_cli.kernels.sums import sum_models

Election = Literal["mass", "count"]
ZeroSum = Literal["plus", "none"]


def elect_sign(weighted: Tensor, *, by: Election, zero_sum: ZeroSum) -> Tensor:
    """Return the sign that each element is given: -1, 0 or +1.

    Args:
        weighted: Weighted task vectors, shape ``(n, numel)``.
        by: ``mass`` takes the sign of the sum; ``count`` that of the number of positive less negative entries.
        zero_sum: Where the vote is exactly balanced: ``plus`` elects +, ``none`` elects nobody.

    Returns:
        Shape ``(numel,)``, the dtype of ``weighted``.

    Source:
        The elect step of TIES-Merging, Yadav et al. 2023, section 3, arXiv 2306.01708: by mass. The paper does not
        say what a zero sum elects; by its definition of the agreeing set it is nobody.
    """
    votes = weighted if by == "mass" else weighted.sign()
    sign = sum_models(votes).sign_()
    # sign + 1/2 is positive for 0 and +1 and negative for -1.
    return sign.add_(0.5).sign_() if zero_sum == "plus" else sign


def agreeing(weighted: Tensor, elected: Tensor) -> Tensor:
    """Zero the entries whose sign is not the elected one.

    Args:
        weighted: Weighted task vectors, shape ``(n, numel)``.
        elected: The elected signs, shape ``(numel,)``.

    Returns:
        A new tensor of shape ``(n, numel)``.
    """
    # Folded onto the elected side, agreeing entries are positive and everything else is cut at zero.
    return (weighted * elected).clamp_(min=0).mul_(elected)


def disjoint_merge(weighted: Tensor, weights: Tensor, elected: Tensor, *, normalize: bool) -> Tensor:
    """Sum the entries that agree with the elected sign; divided by the weights of their models with ``normalize``.

    Args:
        weighted: Weighted task vectors, shape ``(n, numel)``.
        weights: The weights, shape ``(n, 1)``.
        elected: The elected signs, shape ``(numel,)``.
        normalize: Whether to divide. With equal weights that is the disjoint mean; where nobody agrees, or the
            weights of those who do cancel, nothing is divided.

    Returns:
        Shape ``(numel,)``.

    Source:
        The disjoint merge of TIES-Merging, Yadav et al. 2023, section 3, arXiv 2306.01708.
    """
    agreed = agreeing(weighted, elected)
    total = sum_models(agreed)
    if not normalize:
        return total
    divisor = sum_models(agreed.sign_().abs_() * weights)
    return total / torch.where(divisor.abs() < 1e-8, torch.ones_like(divisor), divisor)
