"""Exact sums of squared per-example gradients from batched forward and backward passes.

The weights do not require gradients, so that the backward pass computes those of activations only. Hooks see what goes
into each known layer and the gradient of what came out; :mod:`merge_cli.fisher.layer_rules` turns the two into
per-example gradients in factored form and :mod:`merge_cli.fisher.factors` adds up their squares. Parameters of other
modules get theirs by running the module, or the model, again for each example. On the first batch all of them are
compared with a loop over single examples, and what does not agree is found in a slower way.

Source:     The definition: methods like Fisher-weighted averaging, Matena & Raffel 2022, arXiv 2111.09832, section 3.2,
use     squared gradients of single examples; the square of a batch's gradient is another quantity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from merge_cli.fisher.batch_axes import Call, trace
from merge_cli.fisher.example_replay import add_single_examples
from merge_cli.fisher.factors import new_accumulator
from merge_cli.fisher.gradient_strategy import GradientPlan, Strategy, choose_strategies, table_weights
from merge_cli.fisher.hooks import HookedPass, TraceMismatch
from merge_cli.fisher.objective import Batch, Objective

# Relative disagreement with the loop up to which a way counts as right: rounding, by the dtype of the computation.
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-4}
_COARSE_TOLERANCE = 0.3
# Squares this far below the model's are rounding of gradients that are zero, such as those of a key's bias.
_NEGLIGIBLE = 1e-10


class SquaredGradients:
    """Adds up squared per-example gradients of a model's parameters.

    Args:
        model: In evaluation mode. Its parameters stop requiring gradients. Examples must not influence each other.
        parameters: Name -> parameter for those that are wanted; a tied one once.

    Attributes:
        totals: Name -> float32 sums over all examples so far, in the parameters' shapes.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self.model = model.requires_grad_(False)
        self.parameters = dict(parameters)
        self.totals = {
            name: new_accumulator(parameter.shape, parameter.device) for name, parameter in parameters.items()
        }
        self._total_of = {parameter: self.totals[name] for name, parameter in parameters.items()}
        self._least: dict[Tensor, Strategy] = {}
        self._plan: GradientPlan | None = None
        self._traced: dict[nn.Module, list[Call]] = {}

    def add(self, batch: Batch, objective: Objective) -> Any:
        """Add the squares of a batch's gradients, and return the model's outputs.

        The first call also settles how the gradients are found.
        """
        if self._plan is None:
            self.settle(batch, objective)
        return self._add(batch, objective)

    def settle(self, batch: Batch, objective: Objective) -> None:
        """Find a way to each parameter's gradients, and compare two examples with a loop until nothing disagrees.

        The totals are zero after it.
        """
        self._traced = trace(self.model, batch)
        self._replan()
        small = batch.take([row % batch.size for row in range(2)])
        while True:
            self._clear()
            failed = self._disagreeing(small, objective)
            if not failed:
                break
            self._demote(failed)
        self._clear()

    def ways(self) -> dict[str, str]:
        """Return how each parameter's gradients are found: ``layer``, ``replay``, ``model``, or ``unused``."""
        assert self._plan is not None, "no batch has been added"
        idle = {parameter for module in self._plan.uncalled for parameter in module.parameters(recurse=False)}
        return {
            name: "unused" if parameter in idle else self._plan.ways[parameter].name.lower()
            for name, parameter in self.parameters.items()
        }

    def _add(self, batch: Batch, objective: Objective) -> Any:
        while True:
            assert self._plan is not None
            watch = HookedPass(self._plan, self._traced, self._total_of, batch.size)
            try:
                with watch.hooks():
                    outputs = self.model(**batch.inputs)
                break
            except TraceMismatch as misfit:
                self._demote(misfit.parameters)
        with torch.no_grad():
            targets = objective.targets(outputs, batch)
        for number, target in enumerate(targets, start=1):
            watch.backward(objective.losses(outputs, target), last=number == len(targets))
        if self._plan.model:
            add_single_examples(self.model, self._plan.model, self._total_of, batch, objective, targets)
        return outputs

    def _disagreeing(self, batch: Batch, objective: Objective) -> list[Tensor]:
        assert self._plan is not None
        try:
            self._add(batch, objective)
        except RuntimeError:
            # A table of positions, looked up once, that the model cannot take once for every example.
            tables = [weight for table in [*self._plan.shared, *self._plan.tables] for weight in table_weights(table)]
            failed = [parameter for parameter in self._total_of if any(parameter is table for table in tables)]
            if not failed:
                raise
            return failed
        found = {parameter: _root_mean_square(total) for parameter, total in self._total_of.items()}
        with torch.no_grad():
            targets = objective.targets(self.model(**batch.inputs), batch)
        wanted = tuple(self._total_of)
        add_single_examples(self.model, wanted, self._total_of, batch, objective, targets, sign=-1)
        negligible = _NEGLIGIBLE * max(found.values(), default=0.0)
        failed = []
        for parameter, total in self._total_of.items():
            tolerance = _TOLERANCE.get(parameter.dtype, _COARSE_TOLERANCE)
            off = _root_mean_square(total)
            if off > tolerance * found[parameter] + negligible and self._plan.ways[parameter] < Strategy.MODEL:
                failed.append(parameter)
        return failed

    def _demote(self, parameters: list[Tensor]) -> None:
        assert self._plan is not None
        for parameter in parameters:
            self._least[parameter] = Strategy(min(Strategy.MODEL, self._plan.ways[parameter] + 1))
        self._replan()

    def _replan(self) -> None:
        self._plan = choose_strategies(self.model, self._total_of, self._traced, self._least)

    def _clear(self) -> None:
        for total in self._total_of.values():
            total.zero_()


def _root_mean_square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values).item() / max(values.numel(), 1) ** 0.5)
