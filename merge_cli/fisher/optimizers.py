"""Which entry of an optimiser's state belongs to which parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from merge_cli.errors import CheckpointError, listed

# Names of parameters to which transformers' Trainer applies no weight decay, in its current and in older versions.
_NO_DECAY = (
    re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)"),
    re.compile(r"bias"),
)


@dataclass(frozen=True)
class Moments:
    """Second moments, or a Hessian, by parameter.

    Attributes:
        values: Name of the parameter in the model -> numbers in its shape.
        steps: Optimiser steps taken.
        beta2: Decay of the second moments.
        effective_examples: IVON's ess.
        weight_decay: Of IVON, where all groups have the same.
    """

    values: Mapping[str, Tensor]
    steps: int | None = None
    beta2: float | None = None
    effective_examples: float | None = None
    weight_decay: float | None = None


def name_adam(state: Any, model: nn.Module, label: str) -> Moments:
    """Read the state of torch's Adam or AdamW as a transformers Trainer run saves it.

    Raises:
        CheckpointError: If it is no such state or does not fit the model.
    """
    groups, entries = _groups(state, label), state.get("state", {})
    kinds = sorted({key for entry in entries.values() for key in entry})
    if "exp_avg_sq" not in kinds:
        raise CheckpointError(
            f"{label} has no exp_avg_sq: its entries are {listed(kinds)}",
            hint="only Adam and AdamW of torch keep full second moments; 8-bit Adam and Adafactor do not",
        )
    numbers = [number for group in groups for number in group["params"]]
    names = _match(groups, model, [tuple(entries[number]["exp_avg_sq"].shape) if number in entries else None
                                   for number in numbers], label)  # fmt: skip
    values = {name: entries[number]["exp_avg_sq"].float() for name, number in zip(names, numbers, strict=True)
              if number in entries}  # fmt: skip
    steps = {int(entry["step"]) for entry in entries.values()}
    betas = {float(group["betas"][1]) for group in groups if "betas" in group}
    return Moments(values, max(steps), betas.pop() if len(betas) == 1 else None)


def name_ivon(state: Any, model: nn.Module, label: str) -> Moments:
    """Read the state of IVON, which keeps the Hessian of a group as one vector in the group.

    Raises:
        CheckpointError: If it is no such state or does not fit the model.
    """
    groups = _groups(state, label)
    if not all(isinstance(group.get("hess"), Tensor) for group in groups):
        raise CheckpointError(f"{label} has no Hessian (hess) in its groups", hint="is it the state of IVON?")
    shapes = {name: value.shape for name, value in model.named_parameters()}
    wanted = [group["hess"].numel() for group in groups]
    fitting = (
        order
        for order in _orders(groups, model)
        if [sum(shapes[name].numel() for name in names) for names in order] == wanted
    )
    order = next(fitting, None)
    if order is None:
        raise CheckpointError(f"{label}: the Hessian's size is not that of the model's parameters")
    values: dict[str, Tensor] = {}
    for group, names in zip(groups, order, strict=True):
        parts = group["hess"].float().split([shapes[name].numel() for name in names])
        values |= {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}
    examples = {float(group["ess"]) for group in groups if "ess" in group}
    decays = {float(group["weight_decay"]) for group in groups if "weight_decay" in group}
    return Moments(
        values,
        effective_examples=examples.pop() if len(examples) == 1 else None,
        weight_decay=decays.pop() if len(decays) == 1 else None,
    )


def _groups(state: Any, label: str) -> list[dict[str, Any]]:
    if not isinstance(state, dict) or not isinstance(state.get("param_groups"), list):
        raise CheckpointError(f"{label} is not the state of a torch optimiser: it has no param_groups")
    groups: list[dict[str, Any]] = state["param_groups"]
    return groups


def _match(
    groups: list[dict[str, Any]], model: nn.Module, shapes: list[tuple[int, ...] | None], label: str
) -> list[str]:
    """Return the parameters' names in the order of the groups, the first order in which all shapes fit."""
    known = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for order in _orders(groups, model):
        names = [name for group in order for name in group]
        sizes = [len(group) for group in order] == [len(group["params"]) for group in groups]
        if sizes and all(shape in {None, known.get(name)} for name, shape in zip(names, shapes, strict=True)):
            return names
    raise CheckpointError(
        f"{label} does not fit the model: {len(shapes)} parameters in groups of "
        f"{listed(str(len(group['params'])) for group in groups)}, the model has {len(known)}",
        hint="were some parameters frozen, or others added? store a safetensors file of exp_avg_sq by name instead",
    )


def _orders(groups: list[dict[str, Any]], model: nn.Module) -> Iterator[list[list[str]]]:
    """Yield the orders in which parameters may have been given to the optimiser."""
    if all("param_names" in group for group in groups):
        yield [list(group["param_names"]) for group in groups]
        return
    names = [name for name, _ in model.named_parameters()]
    if len(groups) == 1:
        yield [names]
    normed = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    for pattern in _NO_DECAY:
        without = [name for name in names if name in normed or pattern.search(name.lower())]
        yield [[name for name in names if name not in set(without)], without]
