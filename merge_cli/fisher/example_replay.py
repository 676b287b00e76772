"""Replay of a module, or the model, for each example: per-example gradients without a closed form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from merge_cli.fisher.batch_axes import take_example, tensors_in
from merge_cli.fisher.objective import Batch, Objective, Target


@dataclass(frozen=True)
class Replayed:
    """One call of a module that is to be run again.

    Attributes:
        given: Its arguments, positional and by keyword.
        carries: For each tensor among them whether it carries the examples.
        returned: Position among the output tensors -> gradient of the losses with respect to it, as it comes in.
    """

    given: Any
    carries: tuple[bool, ...]
    returned: dict[int, Tensor]


@contextlib.contextmanager
def requiring(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let parameters require gradients for a while; what is computed meanwhile keeps its graph."""
    changed = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(False)


def add_replayed(
    module: nn.Module,
    wanted: Sequence[Tensor],
    calls: Sequence[Replayed],
    totals: Mapping[Tensor, Tensor],
    size: int,
) -> None:
    """Run a module again for each example, and add the squares of its parameters' gradients to the totals."""
    for example in range(size):
        outputs: list[Tensor] = []
        returned: list[Tensor] = []
        with requiring(wanted):
            for call in calls:
                args, kwargs = take_example(call.given, call.carries, example)
                made = tensors_in(module(*args, **kwargs))
                for place, back in call.returned.items():
                    if made[place].requires_grad:
                        outputs.append(made[place])
                        returned.append(back[example : example + 1])
            if outputs:
                _add_squares_of(wanted, torch.autograd.grad(outputs, wanted, returned, allow_unused=True), totals)
    for call in calls:
        call.returned.clear()


def add_single_examples(
    model: nn.Module,
    wanted: Sequence[Tensor],
    totals: Mapping[Tensor, Tensor],
    batch: Batch,
    objective: Objective,
    targets: Sequence[Target],
    *,
    sign: float = 1.0,
) -> None:
    """Loop over the examples with batches of one, and add ``sign`` times the squared gradients to the totals.

    Each parameter's gradient is freed as soon as its square is added, so there are never two large ones.
    """

    def arrived(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.float(), None
        totals[parameter].addcmul_(gradient, gradient, value=sign)

    for row in range(batch.size):
        with requiring(wanted):
            handles = [
                parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
                for parameter in wanted
            ]
            try:
                outputs = model(**batch.take([row]).inputs)
                for number, target in enumerate(targets, start=1):
                    loss = objective.losses(outputs, target.take(row)).sum()
                    if loss.requires_grad:
                        loss.backward(retain_graph=number < len(targets))  # type: ignore[no-untyped-call]
            finally:
                for handle in handles:
                    handle.remove()


def _add_squares_of(
    wanted: Sequence[Tensor], gradients: Sequence[Tensor | None], totals: Mapping[Tensor, Tensor]
) -> None:
    for parameter, gradient in zip(wanted, gradients, strict=True):
        if gradient is not None:
            gradient = gradient.float()
            totals[parameter].addcmul_(gradient, gradient)
