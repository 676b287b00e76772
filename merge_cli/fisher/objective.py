"""Batches, targets and objectives of one pass over a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Examples that go through the model together.

    Attributes:
        inputs: Keyword arguments of the model; every tensor has the example as its first dimension.
        keys: One integer per example that does not depend on the batch it is in; seeds what is random about it.
        labels: True labels, first dimension the example, -100 where there is none; None where there are none at all.
    """

    inputs: Mapping[str, Tensor]
    keys: tuple[int, ...]
    labels: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.keys)

    def to(self, device: torch.device) -> Batch:
        """Return the same on another device."""
        return Batch(
            {name: value.to(device) for name, value in self.inputs.items()},
            self.keys,
            None if self.labels is None else self.labels.to(device),
        )

    def take(self, rows: list[int]) -> Batch:
        """Return the examples at these positions; a position may stand more than once."""
        return Batch(
            {name: value[rows] for name, value in self.inputs.items()},
            tuple(self.keys[row] for row in rows),
            None if self.labels is None else self.labels[rows],
        )


@dataclass(frozen=True)
class Target:
    """Labels for one backward pass, and a factor for each example's loss.

    Attributes:
        labels: First dimension the example, -100 where no loss is taken.
        factor: Shape ``(batch,)``; squared gradients carry its square. None for 1.
    """

    labels: Tensor
    factor: Tensor | None = None

    def take(self, row: int) -> Target:
        """Return the target of one example, as a batch of one."""
        return Target(self.labels[row : row + 1], None if self.factor is None else self.factor[row : row + 1])


class Objective(Protocol):
    """Rule that turns outputs into losses."""

    def targets(self, outputs: Any, batch: Batch) -> list[Target]:
        """Return one target per backward pass; the sum over passes of the squared gradients is one example's share."""
        ...

    def losses(self, outputs: Any, target: Target) -> Tensor:
        """Return each example's loss, summed over its tokens, shape ``(batch,)``."""
        ...
