"""Batch axes of module calls: where the examples are the first dimension of inputs and outputs.

A leading dimension that happens to equal the batch size proves nothing: a table of relative positions is looked up with
as many rows as there are tokens. So the same forward pass is made with two and with three examples, and what grew with
them carries them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from merge_cli.fisher.objective import Batch


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        inputs: For each tensor among the arguments, ordered as in :func:`tensors_in`: whether it carries the examples.
        outputs: The same for what it returned.
        sound: Whether every tensor either carries the examples first or does not depend on how many there are.
        leaf: Whether the first argument is a tensor, and the return value one.
    """

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    sound: bool
    leaf: bool

    @property
    def separable(self) -> bool:
        """Tell whether one example can go through the module without the others."""
        return self.sound and bool(self.outputs) and all(self.outputs)


Shapes = tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], bool]


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested arguments or outputs, in a fixed order."""
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def trace(model: nn.Module, batch: Batch) -> dict[nn.Module, list[Call]]:
    """Run the model with two and with three examples of the batch and compare; modules not called are left out."""
    rows = [row % batch.size for row in range(3)]
    two = _record(model, batch.take(rows[:2]))
    three = _record(model, batch.take(rows))
    found: dict[nn.Module, list[Call]] = {}
    for module, calls in two.items():
        others = three.get(module, [])
        if len(calls) == len(others):
            found[module] = [_compare(small, large) for small, large in zip(calls, others, strict=True)]
        else:
            found[module] = [Call((), (), False, False)] * len(calls)
    return found


def _record(model: nn.Module, batch: Batch) -> dict[nn.Module, list[Shapes]]:
    calls: dict[nn.Module, list[Shapes]] = {}

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        leaf = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        calls.setdefault(module, []).append((_shapes((args, kwargs)), _shapes(output), leaf))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in model.modules()]
    try:
        with torch.no_grad():
            model(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensors_in(value))


def _compare(small: Shapes, large: Shapes) -> Call:
    if len(small[0]) != len(large[0]) or len(small[1]) != len(large[1]):
        return Call((), (), False, False)

    def grew(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
        return before[:1] == (2,) and after[:1] == (3,) and before[1:] == after[1:]

    pairs = [list(zip(small[0], large[0], strict=True)), list(zip(small[1], large[1], strict=True))]
    inputs, outputs = (tuple(grew(before, after) for before, after in part) for part in pairs)
    sound = all(grew(before, after) or before == after for part in pairs for before, after in part)
    return Call(inputs, outputs, sound, small[2])


def take_example(value: Any, carries: tuple[bool, ...], example: int) -> Any:
    """Rebuild nested arguments for one example, as a batch of one, detached from any graph."""
    flags = iter(carries)

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach()[example : example + 1] if next(flags) else leaf.detach()

    return map_leaves(take, value)


def map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every leaf of nested arguments, in the order of :func:`tensors_in`."""
    leaves, spec = _pytree.tree_flatten(value)
    return _pytree.tree_unflatten([change(leaf) for leaf in leaves], spec)
