"""Per-example losses for each task, and each way of choosing labels.

Losses are negative log-likelihoods summed over an example's tokens: the square of a mean over tokens would be smaller
by the square of their number.

Source:
    Estimators of the Fisher diagonal: Matena & Raffel 2022, arXiv 2111.09832, section 3.2 (expectation over the model's
    own labels); the one with true labels is called empirical there and elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from merge_cli.errors import RecipeError
from merge_cli.fisher.objective import Batch, Target

# The label that torch and transformers leave out of losses.
IGNORED = -100
# Elements of the float64 cumulative sums made at a time when labels are drawn.
_CHUNK_NUMEL = 2**22


class Estimator(StrEnum):
    """Labels at which squared gradients are taken."""

    SAMPLED = "sampled"
    EXACT = "exact"
    EMPIRICAL = "empirical"


class Task(StrEnum):
    """Task of a model: what it predicts."""

    CAUSAL_LM = "causal-lm"
    MASKED_LM = "masked-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    SEQ2SEQ_LM = "seq2seq-lm"
    IMAGE_CLASSIFICATION = "image-classification"

    @property
    def per_token(self) -> bool:
        """Tell whether there is a label for each token rather than one for each example."""
        return self not in {Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION}


@dataclass(frozen=True)
class Likelihood:
    """The objective of a task under an estimator.

    Attributes:
        task: What the model predicts.
        estimator: Where labels come from.
        draws: Labels drawn per example, or per token; for the sampled estimator.
        seed: Of the draws; with it an example's own key decides, so that batches do not matter.
    """

    task: Task
    estimator: Estimator
    draws: int = 1
    seed: int = 0

    def targets(self, outputs: Any, batch: Batch) -> list[Target]:
        """Return one target per backward pass; their factors make the squares' sum the mean over draws or classes.

        Raises:
            RecipeError: If the estimator does not fit the task or the batch.
        """
        logits = self._logits(outputs)
        if self.estimator is Estimator.EXACT:
            if self.task.per_token:
                raise RecipeError(
                    f"the exact estimator has no meaning for {self.task}: one label for each of many tokens",
                    hint="use --estimator sampled",
                )
            return _every_class(logits)
        if self.estimator is Estimator.EMPIRICAL:
            if batch.labels is None:
                raise RecipeError("the empirical estimator needs labels, and the data has none")
            return [Target(batch.labels)]
        counted = self._shifted(batch.labels) != IGNORED if self.task.per_token and batch.labels is not None else None
        drawn = draw_labels(logits, counted, batch.keys, draws=self.draws, seed=self.seed)
        factor = torch.full((batch.size,), self.draws**-0.5, device=logits.device) if self.draws > 1 else None
        return [Target(self._unshifted(labels), factor) for labels in drawn]

    def losses(self, outputs: Any, target: Target) -> Tensor:
        """Return each example's negative log-likelihood, summed over tokens, times its factor, shape ``(batch,)``."""
        logits = self._logits(outputs)
        labels = self._shifted(target.labels) if self.task.per_token else target.labels
        flat = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
        )
        losses = flat.reshape(len(labels), -1).sum(dim=1)
        return losses if target.factor is None else losses * target.factor

    def _logits(self, outputs: Any) -> Tensor:
        logits = outputs.logits
        assert isinstance(logits, Tensor)
        # The logits at a token of a causal model are those of the next one.
        return logits[:, :-1] if self.task is Task.CAUSAL_LM else logits

    def _shifted(self, labels: Tensor) -> Tensor:
        return labels[:, 1:] if self.task is Task.CAUSAL_LM else labels

    def _unshifted(self, labels: Tensor) -> Tensor:
        return functional.pad(labels, (1, 0), value=IGNORED) if self.task is Task.CAUSAL_LM else labels


def _every_class(logits: Tensor) -> list[Target]:
    """Return a target for each class, with the square root of its probability as a constant factor."""
    roots = functional.log_softmax(logits.float(), dim=-1).div(2).exp()
    everyone = torch.ones(len(logits), dtype=torch.long, device=logits.device)
    return [Target(everyone * label, roots[:, label]) for label in range(logits.shape[-1])]


def draw_labels(logits: Tensor, counted: Tensor | None, keys: Sequence[int], *, draws: int, seed: int) -> list[Tensor]:
    """Draw labels from the model's own distribution.

    Args:
        logits: Shape ``(batch, ..., classes)``.
        counted: Where a label is wanted, shape ``(batch, ...)``; None for everywhere.
        keys: One per example; the same key, seed and logits give the same labels in any batch.
        draws: How many times.
        seed: Of all draws.

    Returns:
        ``draws`` tensors of shape ``(batch, ...)``, -100 where no label is wanted.
    """
    drawn = torch.full((draws, *logits.shape[:-1]), IGNORED, dtype=torch.long, device=logits.device)
    for example, key in enumerate(keys):
        of_example = logits[example].reshape(-1, logits.shape[-1])
        wanted = None if counted is None else counted[example].reshape(-1)
        rows = of_example if wanted is None else of_example[wanted]
        labels = _inverse_distribution(rows, _uniform(seed, key, (draws, len(rows))).to(rows.device))
        drawn.view(draws, len(keys), -1)[:, example][:, slice(None) if wanted is None else wanted] = labels
    return list(drawn)


def _uniform(seed: int, key: int, shape: tuple[int, int]) -> Tensor:
    # Neighbouring seeds of this generator give independent streams; the multiplier keeps (seed, key) pairs apart.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + key) % 2**63)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _inverse_distribution(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return for each number in [0, 1) the first class at which the cumulative probability exceeds it.

    Args:
        logits: Shape ``(rows, classes)``.
        uniform: Shape ``(draws, rows)``.
    """
    labels = torch.empty(uniform.shape, dtype=torch.long, device=logits.device)
    step = max(1, _CHUNK_NUMEL // logits.shape[-1])
    for start in range(0, len(logits), step):
        some = slice(start, start + step)
        cumulative = functional.softmax(logits[some].double(), dim=-1).cumsum(dim=-1)
        at = uniform[:, some].t() * cumulative[:, -1:]
        found = torch.searchsorted(cumulative, at.contiguous(), right=True)
        # Rounding may leave the last cumulative probability at or below the number.
        labels[:, some] = found.clamp_(max=logits.shape[-1] - 1).t()
    return labels
