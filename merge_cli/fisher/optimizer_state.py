"""Optimizer states, with each entry under its parameter's name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from merge_cli.checkpoint import Source
from merge_cli.checkpoint.rebuilding import PickledTensor
from merge_cli.checkpoint.sources import part_of, stored
from merge_cli.errors import CheckpointError
from merge_cli.text import listed

# Names of parameters to which transformers' Trainer applies no weight decay, in its current and in older versions.
_NO_DECAY = (
    re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)"),
    re.compile(r"bias"),
)
_MOST_STEPS = 10**12

# Reads the number that a tensor of one element holds.
ReadNumber = Callable[[Source], float]


@dataclass(frozen=True)
class Moments:
    """Second moments, or a Hessian, by parameter.

    Attributes:
        values: Name of the parameter in the model -> where its numbers are, in its shape.
        steps: Optimiser steps taken.
        beta2: Decay of the second moments.
        effective_examples: IVON's ess.
        weight_decay: Of IVON, where all groups have the same.
    """

    values: Mapping[str, Source]
    steps: int | None = None
    beta2: float | None = None
    effective_examples: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class _Group:
    """A group of parameters: their numbers, their names where the state has them, and the group's settings."""

    params: tuple[int, ...]
    names: tuple[str, ...] | None
    settings: Mapping[str, Any]


def read_adam_state(state: Any, model: nn.Module, file: Path, read_number: ReadNumber) -> Moments:
    """Read the state of torch's Adam or AdamW as a transformers Trainer run saves it.

    Args:
        state: As :func:`merge_cli.checkpoint.torch_bin.read_saved` returns it.
        model: Whose parameters were trained; its numbers are not read.
        file: Where the state was read from.
        read_number: Reads the number that a tensor of one element holds.

    Raises:
        CheckpointError: If it is no such state or does not fit the model.
    """
    groups = _groups(state, file)
    numbers = [number for group in groups for number in group.params]
    entries = _entries(state, set(numbers), file)
    kinds = sorted({key for entry in entries.values() for key in entry})
    if not entries:
        raise CheckpointError(f"{file} keeps nothing yet: the optimizer has taken no step")
    if any("exp_avg_sq" not in entry for entry in entries.values()):
        lack = "has no exp_avg_sq" if "exp_avg_sq" not in kinds else "lacks exp_avg_sq for some parameters"
        raise CheckpointError(
            f"{file} {lack}: its entries are {listed(kinds)}",
            hint="only Adam and AdamW of torch keep full second moments; 8-bit Adam and Adafactor do not",
        )
    moments = {
        number: _stored(entry["exp_avg_sq"], f"exp_avg_sq of parameter {number}", file)
        for number, entry in entries.items()
    }
    names = _match(groups, model, [moments[number].shape if number in moments else None for number in numbers], file)
    values = {
        name: moments[number].named(name) for name, number in zip(names, numbers, strict=True) if number in moments
    }
    steps = {_steps(entry["step"], file, read_number) for entry in entries.values() if "step" in entry}
    betas = {_beta2(group.settings["betas"], file) for group in groups if "betas" in group.settings}
    return Moments(values, max(steps, default=None), betas.pop() if len(betas) == 1 else None)


def read_ivon_state(state: Any, model: nn.Module, file: Path) -> Moments:
    """Read the state of IVON, which keeps the Hessian of a group as one vector in the group.

    Raises:
        CheckpointError: If it is no such state or does not fit the model.
    """
    groups = _groups(state, file)
    if not all(isinstance(group.settings.get("hess"), PickledTensor) for group in groups):
        raise CheckpointError(f"{file} has no Hessian (hess) in its groups", hint="is it the state of IVON?")
    hessians = [_stored(group.settings["hess"], "the Hessian", file) for group in groups]
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    wanted = [hessian.numel for hessian in hessians]
    fitting = (
        order
        for order in _orders(groups, model)
        if [sum(math.prod(shapes.get(name, ())) for name in names) for names in order] == wanted
        and all(name in shapes for names in order for name in names)
    )
    order = next(fitting, None)
    if order is None:
        raise CheckpointError(f"{file}: the Hessian's size is not that of the model's parameters")
    values: dict[str, Source] = {}
    for hessian, names in zip(hessians, order, strict=True):
        start = 0
        for name in names:
            values[name] = part_of(hessian, start, name, shapes[name])
            start += values[name].numel
    examples = {_positive(group.settings["ess"], "ess", file) for group in groups if "ess" in group.settings}
    decays = {
        _positive(group.settings["weight_decay"], "weight_decay", file)
        for group in groups
        if group.settings.get("weight_decay")
    }
    return Moments(
        values,
        effective_examples=examples.pop() if len(examples) == 1 else None,
        weight_decay=decays.pop() if len(decays) == 1 else None,
    )


def _groups(state: Any, file: Path) -> list[_Group]:
    """Check the types of all that is read of the groups."""
    found = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(found, list) or not found:
        raise CheckpointError(f"{file} is not the state of a torch optimizer: it has no param_groups")
    groups = []
    for content in found:
        params = content.get("params") if isinstance(content, dict) else None
        if not isinstance(params, list) or not all(type(number) is int for number in params):
            raise _unsound(file, "a group's params are not numbers")
        names = content.get("param_names")
        if names is not None and not (
            isinstance(names, list) and len(names) == len(params) and all(type(name) is str for name in names)
        ):
            raise _unsound(file, "a group's param_names are not one name for each of its params")
        groups.append(_Group(tuple(params), tuple(names) if names is not None else None, content))
    for each in ([number for group in groups for number in group.params],
                 [name for group in groups for name in group.names or ()]):  # fmt: skip
        if len(set(each)) < len(each):
            raise _unsound(file, "a parameter is in its groups twice")
    return groups


def _entries(state: Mapping[str, Any], numbers: set[int], file: Path) -> Mapping[int, Mapping[str, Any]]:
    """Check the types of the entries, one for each parameter that was trained."""
    entries = state.get("state")
    if not isinstance(entries, dict) or not all(type(number) is int for number in entries):
        raise _unsound(file, "its state is not by the numbers of parameters")
    if unknown := sorted(set(entries) - numbers):
        raise _unsound(file, f"its state is of parameters that no group has: {listed(map(str, unknown))}")
    if not all(isinstance(entry, dict) and all(type(key) is str for key in entry) for entry in entries.values()):
        raise _unsound(file, "the entry of a parameter is not a mapping of names")
    return entries


def _stored(value: Any, what: str, file: Path) -> Source:
    if not isinstance(value, PickledTensor):
        raise _unsound(file, f"{what} is not a tensor")
    if value.trouble:
        raise CheckpointError(f"{file}: {what} has {value.trouble}, which is not supported")
    found = stored(value.named(what, file))
    if not found.dtype.is_float:
        raise CheckpointError(f"{file}: {what} has dtype {found.dtype.torch_name}, expected floating-point numbers")
    return found


def _steps(value: Any, file: Path, read_number: ReadNumber) -> int:
    if isinstance(value, PickledTensor):
        place = _stored(value, "step", file)
        if place.numel != 1:
            raise _unsound(file, f"step has {place.numel} numbers, expected one")
        value = read_number(place)
    if type(value) not in (int, float) or not 1 <= value <= _MOST_STEPS or value != int(value):
        raise _unsound(file, "step is not a number of steps")
    return int(value)


def _beta2(value: Any, file: Path) -> float:
    found: Any = value[1] if isinstance(value, (tuple, list)) and len(value) == 2 else None
    if type(found) not in (int, float) or not 0 <= found < 1:
        raise _unsound(file, "betas are not two numbers from 0 to below 1")
    return float(found)


def _positive(value: Any, what: str, file: Path) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise _unsound(file, f"{what} is not a number above 0")
    return float(value)


def _unsound(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file} is not a sound state of an optimizer: {why}")


def _match(groups: Sequence[_Group], model: nn.Module, shapes: list[tuple[int, ...] | None], file: Path) -> list[str]:
    """Return the parameters' names in the order of the groups, the first order in which all shapes fit."""
    known = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for order in _orders(groups, model):
        names = [name for group in order for name in group]
        sizes = [len(group) for group in order] == [len(group.params) for group in groups]
        if sizes and all(shape in (None, known.get(name)) for name, shape in zip(names, shapes, strict=True)):
            return names
    raise CheckpointError(
        f"{file} does not fit the model: {len(shapes)} parameters in groups of "
        f"{listed(str(len(group.params)) for group in groups)}, the model has {len(known)}",
        hint="were some parameters frozen, or others added? store a safetensors file of exp_avg_sq by name instead",
    )


def _orders(groups: Sequence[_Group], model: nn.Module) -> Iterator[list[list[str]]]:
    """Yield the orders in which parameters may have been given to the optimiser."""
    named = [list(group.names) for group in groups if group.names is not None]
    if len(named) == len(groups):
        yield named
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
