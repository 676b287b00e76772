"""Hooks on one forward pass and the backward passes from it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from merge_cli.fisher.batch_axes import Call, tensors_in
from merge_cli.fisher.example_replay import Replayed, add_replayed, requiring
from merge_cli.fisher.factors import Contribution, DenseGradients, add_squares
from merge_cli.fisher.gradient_strategy import GradientPlan
from merge_cli.fisher.layer_rules import Rule


class TraceMismatch(Exception):
    """The model did something else than when it was traced; carries the parameters concerned."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__("the model did something else than when it was traced")
        self.parameters = parameters


class HookedPass:
    """Hooks for one batch, what they saw, and what they add to the totals.

    Args:
        plan: What to watch.
        traced: The calls as they were when traced.
        totals: Parameter -> the float32 sum to add to; a parameter that is not here is left out.
        size: Number of examples in the batch.
    """

    def __init__(
        self,
        plan: GradientPlan,
        traced: Mapping[nn.Module, list[Call]],
        totals: Mapping[Tensor, Tensor],
        size: int,
    ) -> None:
        self._plan = plan
        self._traced = traced
        self._totals = totals
        self._size = size
        self._leaves: list[Tensor] = []
        self._given: dict[int, Tensor] = {}
        self._uses: Counter[Tensor] = Counter()
        self._parts: dict[Tensor, list[Contribution]] = {}
        self._replayed: dict[nn.Module, list[Replayed]] = {module: [] for module in plan.replays}
        self._tables_returned: list[tuple[Tensor, Tensor, Tensor]] = []
        self._last = False

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the forward pass that is made inside.

        Raises:
            Misfit: Out of the forward pass, if it is not like the traced one.
        """
        handles = []
        for layer, rule in self._plan.layers.items():
            handles.append(layer.register_forward_hook(partial(self._layer_called, rule)))
        for module in self._plan.replays:
            handles.append(module.register_forward_hook(self._replay_called, with_kwargs=True))
        for module in self._plan.uncalled:
            handles.append(module.register_forward_pre_hook(self._uncalled_called))
        try:
            with contextlib.ExitStack() as stack, torch.enable_grad():
                for module in self._plan.tables:
                    stack.enter_context(self._table_shared_out(module))
                yield
        finally:
            for handle in handles:
                handle.remove()

    def backward(self, losses: Tensor, *, last: bool) -> None:
        """Go back from the examples' losses, shape ``(batch,)``, and add the squares of their gradients.

        Args:
            losses: Each example's loss.
            last: Whether what the forward pass left in memory is no longer needed.
        """
        self._last = last
        if self._leaves and losses.requires_grad:
            torch.autograd.grad(losses.sum(), self._leaves, retain_graph=not last, allow_unused=True)
        for table, bias, back in self._tables_returned:
            self._add(table, DenseGradients(_split_table_gradient(table, bias, back)))
        self._tables_returned.clear()
        for parameter in list(self._parts):
            self._finish(parameter)
        for module, calls in self._replayed.items():
            add_replayed(module, self._plan.replays[module], calls, self._totals, self._size)

    def _layer_called(self, rule: Rule, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        given = args[0].detach()
        if module in self._plan.shared:
            if given.shape[0] != 1 or output.shape[0] != 1:
                raise self._misfit(module)
            given = given.expand(self._size, *given.shape[1:])
            output = output.detach().expand(self._size, *output.shape[1:])
        elif given.shape[0] != self._size or output.shape[0] != self._size:
            raise self._misfit(module)
        output = self._requiring_grad(output)
        call = len(self._given)
        self._given[call] = given
        _when_returned(output, partial(self._layer_returned, rule, module, call))
        self._uses.update(parameter for parameter in module.parameters(recurse=False) if parameter in self._totals)
        return output

    def _layer_returned(self, rule: Rule, module: nn.Module, call: int, back: Tensor) -> None:
        given = self._given.pop(call) if self._last else self._given[call]
        with torch.no_grad():
            for parameter, part in rule(module, given, back):
                self._add(parameter, part)

    def _add(self, parameter: Tensor, part: Contribution) -> None:
        """Add a use of a parameter; all its uses in a pass are summed before squaring."""
        if parameter not in self._totals:
            return
        parts = self._parts.setdefault(parameter, [])
        parts.append(part)
        if len(parts) == self._uses[parameter]:
            self._finish(parameter)

    def _finish(self, parameter: Tensor) -> None:
        with torch.no_grad():
            add_squares(self._totals[parameter], self._parts.pop(parameter))

    def _replay_called(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls = self._replayed[module]
        if len(calls) >= len(self._traced[module]):
            raise TraceMismatch(list(self._plan.replays[module]))
        call = self._traced[module][len(calls)]
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(output)
        carrying = [tensor for tensor, carries in zip(inputs, call.inputs, strict=False) if carries]
        if (len(inputs), len(outputs)) != (len(call.inputs), len(call.outputs)) or any(
            tensor.shape[:1] != (self._size,) for tensor in carrying + outputs
        ):
            raise TraceMismatch(list(self._plan.replays[module]))
        returned: dict[int, Tensor] = {}
        for place, tensor in enumerate(outputs):
            if tensor.is_floating_point():
                _when_returned(self._requiring_grad(tensor), partial(returned.__setitem__, place))
        calls.append(Replayed((args, kwargs), call.inputs, returned))

    def _requiring_grad(self, output: Tensor) -> Tensor:
        """Start the graph here where nothing before it requires gradients."""
        if not output.requires_grad:
            output.requires_grad_()
            self._leaves.append(output)
        return output

    def _uncalled_called(self, module: nn.Module, args: Any) -> None:
        raise self._misfit(module)

    def _misfit(self, module: nn.Module) -> TraceMismatch:
        return TraceMismatch([parameter for parameter in module.parameters(recurse=False) if parameter in self._totals])

    @contextlib.contextmanager
    def _table_shared_out(self, module: Any) -> Iterator[None]:
        """Give every example its own copy of a bias that T5 computes once, so that its gradients come back apart."""
        compute: Callable[..., Tensor] = module.compute_bias
        table: Tensor = module.relative_attention_bias.weight

        def compute_for_all(*args: Any, **kwargs: Any) -> Tensor:
            with requiring([table]):
                bias = compute(*args, **kwargs)
            copies = self._requiring_grad(bias.detach().expand(self._size, *bias.shape[1:]))
            _when_returned(copies, lambda back: self._tables_returned.append((table, bias, back)))
            self._uses.update([table])
            return copies

        module.compute_bias = compute_for_all
        try:
            yield
        finally:
            del module.compute_bias


def _when_returned(output: Tensor, act: Callable[[Tensor], None]) -> None:
    """Call ``act`` with the gradient of the losses with respect to an output, in every backward pass."""
    output.register_hook(act)  # type: ignore[no-untyped-call]


def _split_table_gradient(table: Tensor, bias: Tensor, back: Tensor) -> Tensor:
    """Return the gradient of each example, shape ``(batch, *table.shape)``."""
    with requiring([table]):
        apart = [torch.autograd.grad(bias, table, row[None], retain_graph=True)[0] for row in back]
    return torch.stack(apart)
