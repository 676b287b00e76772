"""The three steps of TIES: trimming by magnitude, electing one sign per element, summing what agrees with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from merge_cli.kernels.backend import Array, backend_of

Election = Literal["mass", "count"]
ZeroSum = Literal["plus", "none"]
# A sum of weights that is no farther from zero has cancelled.
_VANISHES = 1e-8
# No magnitude is as small.
_KEEP_ALL = -1.0


def zero_below(delta: Array, thresholds: Sequence[float], factors: Sequence[float] | None = None) -> Array:
    """Zero every entry whose magnitude is below its row's threshold, and multiply each row with its factor.

    Args:
        delta: Task vectors, shape ``(n, numel)``.
        thresholds: One per row, representable in float32; 0 keeps all, infinity keeps none. Entries at the threshold
            are kept.
        factors: One per row, by default 1.

    Returns:
        A new array of the same shape.

    Source:
        The trim step of TIES-Merging, Yadav et al. 2023, section 3, arXiv 2306.01708. The paper leaves ties in
        magnitude open; here every entry at the threshold is kept, so the result does not depend on order.
    """
    backend = backend_of(delta)
    kept = backend.empty(tuple(delta.shape))
    for row, out, threshold, factor in zip(delta, kept, thresholds, factors or [1.0] * len(delta), strict=True):
        if threshold == float("inf"):
            out[:] = 0
            continue
        # The largest magnitude that is dropped: the next smaller float32 makes the comparison inclusive.
        bound = float(np.nextafter(np.float32(threshold), np.float32(0))) if threshold > 0 else _KEEP_ALL
        backend.zero_below(row, bound, factor, out)
    return kept


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
    return backend_of(weighted).elect_sign(weighted, by_count=by == "count", plus=zero_sum == "plus")


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
    return backend_of(weighted).disjoint_merge(
        weighted, weights, by_count=by == "count", plus=zero_sum == "plus", least_divisor=least if normalize else None
    )
