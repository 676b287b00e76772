"""The sum over examples of the gradient at the true labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from merge_cli.errors import RecipeError
from merge_cli.fisher.example_replay import requiring
from merge_cli.fisher.objective import Batch, Objective, Target


class SumGradient:
    """Adds up gradients of the summed loss in float32.

    Attributes:
        totals: Name -> sum over all examples so far, in the parameters' shapes.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self._model = model
        self._parameters = dict(parameters)
        self.totals = {
            name: torch.zeros(parameter.shape, device=parameter.device) for name, parameter in parameters.items()
        }

    def add(self, batch: Batch, objective: Objective) -> float:
        """Add the gradient of a batch, and return the sum of its losses.

        Raises:
            RecipeError: If the batch has no labels.
        """
        if batch.labels is None:
            raise RecipeError("the sum gradient needs labels, and the data has none")
        total_of = {parameter: self.totals[name] for name, parameter in self._parameters.items()}

        def arrived(parameter: Tensor) -> None:
            assert parameter.grad is not None
            total_of[parameter].add_(parameter.grad)
            parameter.grad = None

        with requiring(self._parameters.values()):
            handles = [
                parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
                for parameter in self._parameters.values()
            ]
            try:
                losses = objective.losses(self._model(**batch.inputs), Target(batch.labels))
                losses.sum().backward()  # type: ignore[no-untyped-call]
                return float(losses.detach().double().sum())
            finally:
                for handle in handles:
                    handle.remove()
