"""The gradient mismatch of any merged model to joint training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from merge_cli.checkpoint import open_checkpoint
from merge_cli.demo import byte_lm
from merge_cli.demo.corpus import Domain
from merge_cli.demo.recipes import EXPERTS
from merge_cli.fisher import read_all
from merge_cli.mismatch import squared_norm

# Prior precision, relative to the mean of the base's curvature; the default of gradient matching.
_RELATIVE_PRIOR = 0.01


class Mismatch:
    """Measures ||sum_t g_t(m) - g_t(θ_t)|| in the metric of 1 / H_0, for any model m.

    Args:
        folder: Holds the experts' gradients, in ``fisher-1/gradient`` and so on, and ``fisher-base``.
        domains: Of the experts.
        examples: Training examples that the gradients were measured on, from the first.

    Source:
        Equation 10 of Daheim et al. 2024, arXiv 2310.12808, at weight 1, with the gradients measured.
    """

    def __init__(self, folder: Path, domains: Sequence[Domain], examples: int) -> None:
        self._data = [(byte_lm.encode(domain.train[:examples]), len(domain.train)) for domain in domains]
        own = [read_all(open_checkpoint(folder / f"fisher-{i + 1}" / "gradient")) for i in range(len(EXPERTS))]
        self._own = {name: _sum(each[name] for each in own) for name in own[0]}
        base = open_checkpoint(folder / "fisher-base")
        examples_of_base = float(base.metadata["train_examples"])
        curvature = {name: values.double() * examples_of_base for name, values in read_all(base).items()}
        count = sum(values.numel() for values in curvature.values())
        prior = _RELATIVE_PRIOR * sum(float(values.sum()) for values in curvature.values()) / count
        self._curvature = {name: values + prior for name, values in curvature.items()}

    def of(self, folder: Path) -> float:
        """Return the mismatch of the model in a folder."""
        model = byte_lm.load(folder)
        there = [byte_lm.sum_gradient(model, tokens, examples=examples) for tokens, examples in self._data]
        gaps = {name: _sum(each[name] for each in there) - own for name, own in self._own.items()}
        return math.sqrt(sum(squared_norm(gap, self._curvature[name]) for name, gap in gaps.items()))


def _sum(gradients: Iterable[Tensor]) -> Tensor:
    return sum((gradient.double() for gradient in gradients), torch.zeros((), dtype=torch.float64))
