"""Advice on unusual weights, known before anything is merged."""

from __future__ import annotations

from collections.abc import Sequence

from merge_cli.kernels import weight_sum_or_one

# Up to here weights of models that are averaged may cancel: 3 is what adding the difference of two models to a third
# one takes, 1 + 1 - 1.
_MOST_CANCELLING = 3.0
# How far from 1 the sum of weights may be without scaling the whole model noticeably: three times 0.33 is fine.
_SUM_TOLERANCE = 0.05


def scaled_weights(weights: Sequence[float], *, scale: float = 1.0, normalize: bool) -> tuple[float, ...]:
    """Return the weights times λ, divided by their sum with ``normalize``."""
    total = sum(weights) if normalize else 1.0
    return tuple(scale * weight / (total or 1.0) for weight in weights)


def unusual_average(weights: Sequence[float], *, normalize: bool) -> str:
    """Say what is unusual about the weights of models that are averaged; empty where nothing is."""
    total = sum(weights)
    if not normalize:
        if abs(total - 1) <= _SUM_TOLERANCE:
            return ""
        return (
            f"the weights sum to {total:.3g} and normalize is false, so that every number of the merged model is "
            f"{total:.3g} times an average; use normalize: true, or weights that sum to 1"
        )
    share = sum(map(abs, weights)) / abs(total)
    if share <= _MOST_CANCELLING:
        return ""
    return (
        f"the weights nearly cancel: divided by their sum, {total:.3g}, they count {share:.3g} in all, where an "
        "average counts 1"
    )


def unusual_task_weights(
    weights: Sequence[float], *, scale: float, normalize: bool, density: Sequence[float] = ()
) -> str:
    """Say what is unusual about the weights of task vectors and what is kept of them; empty where nothing is.

    Added task vectors are usual up to 0.5 each for several tasks (0.3 for the eight of Ilharco et al. 2023), or 1.5 in
    all for few; averaged ones up to λ = 2 (TIES-Merging searches 0.8 to 1.8). Beyond, the merge leaves the region in
    which the fine-tunes were trained.
    """
    empty = [str(i + 1) for i, kept in enumerate(density) if kept == 0]
    if empty:
        of = "any model" if len(empty) == len(density) else f"model {', '.join(empty)} of {len(density)}"
        return f"density is 0, which keeps nothing of the task vector of {of}; 1 keeps all of it"
    total = abs(scale) * sum(map(abs, weights)) / abs(weight_sum_or_one(weights) if normalize else 1.0)
    usual = 2.0 if normalize else max(1.5, 0.5 * len(weights))
    # A billionth, so that weights such as 0.1 three times are not above their own sum.
    if total <= usual * (1 + 1e-9):
        return ""
    task_vectors = "one task vector" if len(weights) == 1 else f"{len(weights)} task vectors"
    return (
        f"the weights count {total:.3g} in all, with lambda{' and normalize' if normalize else ''}; up to {usual:.3g} "
        f"is usual for {task_vectors}, so lower lambda or the weights"
    )
