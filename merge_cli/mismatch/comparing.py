"""Comparison of a merged model with its experts, in gradients and losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_cli.checkpoint import Checkpoint, Reader
from merge_cli.errors import RecipeError
from merge_cli.fisher import read_tensor
from merge_cli.plan import MergePlan
from merge_cli.plan.companions import FISHER
from merge_cli.plan.roles import BASE, Role

# Fidelity from which on the quadratic model does not hold.
WORST_FIDELITY = 4.0
# An increase of the losses below this share of them is rounding.
_NEGLIGIBLE = 1e-5


@dataclass(frozen=True)
class At:
    """A summed loss and its gradient, on the scale of the training set, and the checkpoint where they were measured."""

    loss: float
    gradient: Checkpoint
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Comparison:
    """A merged model and the experts; see :mod:`merge_cli.mismatch.measuring`."""

    gradient_mismatch: float
    joint_gradient: float
    increases: tuple[float, ...]
    predicted: float
    losses: float

    @property
    def loss_increase(self) -> float:
        """Growth of all losses together."""
        return math.fsum(self.increases)

    @property
    def fidelity(self) -> float | None:
        """That increase over what the quadratic model says it is; None where it says that nothing changes."""
        return self.loss_increase / self.predicted if abs(self.predicted) > _NEGLIGIBLE * self.losses else None

    @property
    def fails(self) -> bool:
        """Tell whether the losses grow by much more than the quadratic model says."""
        grown = self.loss_increase
        return grown > _NEGLIGIBLE * self.losses and grown > WORST_FIDELITY * max(self.predicted, 0.0)


def compare(
    plan: MergePlan,
    own: Sequence[At],
    at: Sequence[At],
    prior_precision: float,
) -> Comparison:
    """Compare a merged model with the experts.

    Args:
        plan: Of gradient matching.
        own: Each expert on its own data.
        at: The merged model on the same data, with the tensors that are not merged as the expert has them.
        prior_precision: δ.
    """
    base, base_fisher = plan.by_role[BASE], plan.by_role.get(Role(FISHER))
    fishers = [plan.by_role[Role(FISHER, i)] for i in range(plan.n)]
    gradients = [each.gradient for each in (*own, *at)]
    checkpoints = [each.checkpoint for each in (*own, *at)]
    everything = [*checkpoints, base, *fishers, *gradients, *([base_fisher] if base_fisher is not None else [])]
    mismatch, joint, predicted = 0.0, 0.0, []
    with Reader(file for checkpoint in everything for file in checkpoint.files) as reader:

        def read(checkpoint: Checkpoint, name: str) -> Tensor | None:
            stored = checkpoint.find(name)
            return None if stored is None else read_tensor(reader, stored).double()

        for task in plan.merged:
            name = task.target.name
            weights = plan.method.effective_weights(task.params) or (1.0,) * plan.n
            here = [_wanted(read(each.gradient, name), name) for each in own]
            there = [_wanted(read(each.gradient, name), name) for each in at]
            curvature = torch.full_like(here[0], prior_precision)
            if base_fisher is not None:
                curvature += plan.base_scale * _wanted(read(base_fisher, name), name)
            step = _wanted(read(at[0].checkpoint, name), name) - _wanted(read(base, name), name)
            zero = torch.zeros_like(curvature)
            gap = sum((w * (t - h) for w, h, t in zip(weights, here, there, strict=True)), zero)
            slope = sum(w * t for w, t in zip(weights, there, strict=True)) + curvature * step
            mismatch += squared_norm(gap, curvature)
            joint += squared_norm(slope, curvature)
        for i, expert in enumerate(own):
            for name in expert.gradient.tensors:
                ends = read(at[i].checkpoint, name), read(expert.checkpoint, name)
                if ends[0] is None or ends[1] is None or ends[0].shape != ends[1].shape:
                    continue
                delta, fisher = ends[0] - ends[1], read(fishers[i], name)
                bend = 0.0 if fisher is None else 0.5 * plan.scales[i] * float((fisher * delta.square()).sum())
                predicted.append(float((_wanted(read(expert.gradient, name), name) * delta).sum()) + bend)
    increases = tuple(there.loss - here.loss for here, there in zip(own, at, strict=True))
    losses = math.fsum(each.loss for each in own)
    return Comparison(math.sqrt(mismatch), math.sqrt(joint), increases, math.fsum(predicted), losses)


def _wanted(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise RecipeError(f"'{name}' is merged, but it is not a parameter whose gradient could be measured")
    return values


def squared_norm(values: Tensor, curvature: Tensor) -> float:
    """Return the square of the norm in the metric of 1 / H_0; where that has no curvature, nothing may differ."""
    squares = values.square()
    return float(torch.where(squares > 0, squares / curvature, 0.0).sum())
