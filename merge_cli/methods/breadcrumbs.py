"""Model Breadcrumbs: task vectors without their tails; Davari & Belilovsky 2024, arXiv 2312.06795.

Equal magnitudes are treated alike, whatever their order: an entry stays if it is no larger than the largest and no
smaller than the smallest of those that are kept by rank.
"""

from __future__ import annotations

from merge_cli.kernels import Array, weight_sum_or_one, weighted_sum, zero_below
from merge_cli.kernels.kth_magnitude import count_kept, last_rank
from merge_cli.methods.contract import (
    Block,
    Density,
    Input,
    MeasureOver,
    Method,
    Totals,
    per_model,
    unusual_task_weights,
)
from merge_cli.methods.prepare.keep_largest import measure_ranks
from merge_cli.methods.task_arithmetic import TaskArithmeticParams


class BreadcrumbsParams(TaskArithmeticParams):
    """Parameters of breadcrumbs."""

    density: tuple[Density, ...] = per_model(1.0, example=0.5, description="fraction of a tensor's entries to keep")
    gamma: tuple[Density, ...] = per_model(
        0.01, description="fraction of a tensor's entries to drop as too large, as far as density leaves any to drop"
    )


def breadcrumbs(block: Block, params: BreadcrumbsParams) -> Array:
    """Return θ₀ + λ sum_i w_i times the task vectors without their outliers and their small entries."""
    smallest, largest = block.measured[: block.n], block.measured[block.n :]
    kept = zero_below(block.deltas, smallest)
    kept *= abs(block.deltas) <= block.column(largest)
    divisor = weight_sum_or_one(params.weight) if params.normalize else 1.0
    merged = weighted_sum(kept, [params.scale * weight / divisor for weight in params.weight])
    merged += block.base
    return merged


def _ranks(totals: Totals, params: BreadcrumbsParams) -> list[int]:
    """Return the ranks of each model's smallest kept entry, then those of its largest."""
    smallest, largest = [], []
    for density, gamma in zip(params.density, params.gamma, strict=True):
        kept = count_kept(totals.numel, density)
        dropped = min(int(gamma * totals.numel), totals.numel - kept)
        smallest.append(last_rank(totals.numel, dropped + kept) if kept else 0)
        largest.append(dropped + 1 if dropped else 0)
    return smallest + largest


METHOD = Method(
    merge=breadcrumbs,
    params=BreadcrumbsParams,
    needs=lambda params, available: frozenset({Input.BASE, Input.DELTAS}),
    summary="drop the largest and the smallest entries of task vectors, add the rest to the base",
    equation="merged = θ₀ + λ Σ wᵢ mᵢ (θᵢ − θ₀),  mᵢ = 1 for the density·numel largest after the gamma·numel largest",
    source="Davari & Belilovsky 2024, arXiv 2312.06795",
    differs="mergekit breaks ties in magnitude by the order of a sort, can rescale what is left, and before 0.1.5 "
    "drops all of a tensor in which gamma counts less than one entry; here one entry stays unless density is 0",
    measure=lambda params: measure_ranks(MeasureOver.TENSOR, _ranks, depends=("density", "gamma")),
    caution=lambda params: unusual_task_weights(
        params.weight, scale=params.scale, normalize=params.normalize, density=params.density
    ),
    numpy=True,
)
