"""Electing one sign per element, and who agrees with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from merge_cli.kernels import compiled
from merge_cli.kernels.arrays import Array
from merge_cli.kernels.sums import sum_models, weighted_sum

Election = Literal["mass", "count"]
ZeroSum = Literal["plus", "none"]
# A sum of weights that is no farther from zero has cancelled.
_VANISHES = 1e-8


def elect_sign(weighted: Array, *, by: Election, zero_sum: ZeroSum) -> Array:
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
    sign = sum_models(weighted if by == "mass" else weighted.sign()).sign_()
    # sign + 1/2 is positive for 0 and +1 and negative for -1.
    return sign.add_(0.5).sign_() if zero_sum == "plus" else sign


def disjoint_merge(
    weighted: Array, weights: Sequence[float], *, by: Election, zero_sum: ZeroSum, normalize: bool
) -> Array:
    """Sum the entries that agree with the elected sign; divided by the weights of their models with ``normalize``.

    Args:
        weighted: Weighted task vectors, shape ``(n, numel)``; overwritten.
        weights: The weights.
        by: How the sign is elected.
        zero_sum: What a balanced vote elects.
        normalize: Whether to divide. With equal weights that is the disjoint mean; where nobody agrees, or the
            weights of those who do cancel, nothing is divided.

    Returns:
        Shape ``(numel,)``.

    Source:
        The disjoint merge of TIES-Merging, Yadav et al. 2023, section 3, arXiv 2306.01708.
    """
    if len(weighted) != len(weights):
        raise ValueError(f"{len(weighted)} rows and {len(weights)} weights")
    positive = [weight for weight in weights if weight > 0]
    # Where no weight is negative, a divisor below the least of them belongs to a total of zero.
    least = min(positive, default=1.0) / 2 if min(weights) >= 0 else _VANISHES
    if compiled.can_take(weighted):
        return compiled.disjoint_merge(
            weighted, weights, by_count=by == "count", plus=zero_sum == "plus",
            least_divisor=least if normalize else None,
        )  # fmt: skip
    elected = elect_sign(weighted, by=by, zero_sum=zero_sum)
    # Folded onto the elected side, agreeing entries are positive, and everything else is cut at zero.
    folded = weighted.mul_(elected).clamp_(min=0)
    total = sum_models(folded).mul_(elected)
    if not normalize:
        return total
    divisor = weighted_sum(folded.sign_(), weights)
    if min(weights) >= 0:
        return total.div_(divisor.clamp_(min=least))
    return total.div_(divisor.masked_fill_(divisor.abs() < least, 1.0))
