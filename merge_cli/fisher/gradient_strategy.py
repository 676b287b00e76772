"""Choice of a per-example gradient strategy for each parameter, from a trace of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from torch import Tensor, nn

from merge_cli.fisher.batch_axes import Call
from merge_cli.fisher.layer_rules import Rule, find_rule


class Strategy(IntEnum):
    """Ways to a parameter's per-example gradients, the cheapest first."""

    LAYER = 0  # from the inputs and returned gradients of the layers that use it
    REPLAY = 1  # a module around it is run again, example by example
    MODEL = 2  # the whole model is run again, example by example


@dataclass(frozen=True)
class GradientPlan:
    """Strategies for all parameters of a model.

    Attributes:
        layers: Known layers to watch -> their rules.
        shared: Those among them that are called once for all examples, as tables of positions are.
        tables: Modules that make a bias of relative positions for all examples, the way T5 does.
        replays: Modules to run again -> the parameters wanted from it.
        model: Parameters that need the whole model.
        ways: Every wanted parameter -> the way chosen for it.
        uncalled: Modules that own wanted parameters and were not called; calling one invalidates the plan.
    """

    layers: Mapping[nn.Module, Rule] = field(default_factory=dict)
    shared: frozenset[nn.Module] = frozenset()
    tables: tuple[nn.Module, ...] = ()
    replays: Mapping[nn.Module, tuple[Tensor, ...]] = field(default_factory=dict)
    model: tuple[Tensor, ...] = ()
    ways: Mapping[Tensor, Strategy] = field(default_factory=dict)
    uncalled: tuple[nn.Module, ...] = ()


def choose_strategies(
    model: nn.Module,
    parameters: Iterable[Tensor],
    traced: Mapping[nn.Module, list[Call]],
    least: Mapping[Tensor, Strategy],
) -> GradientPlan:
    """Choose the cheapest way to each parameter that is not below ``least``, which is what failed before."""
    owners, tables, parents = _owners(model), _tables(model), _parents(model)
    layers: dict[nn.Module, Rule] = {}
    used_tables: list[nn.Module] = []
    replays: dict[nn.Module, list[Tensor]] = {}
    uncalled: dict[nn.Module, None] = {}
    ways: dict[Tensor, Strategy] = {}
    for parameter in parameters:
        called = [user for user in owners[parameter] if user in traced]
        way, table = least.get(parameter, Strategy.LAYER), tables.get(parameter)
        ways[parameter] = way
        if way == Strategy.LAYER and table is not None:
            used_tables.append(table)
        elif way == Strategy.LAYER and not called:
            uncalled.update(dict.fromkeys(owners[parameter]))
        elif way == Strategy.LAYER and len(rules := _rules(called, traced)) == len(called):
            layers.update(rules)
        elif way <= Strategy.REPLAY and called and (around := _smallest_around(called, parents, traced)) is not None:
            replays.setdefault(around, []).append(parameter)
            ways[parameter] = Strategy.REPLAY
        else:
            ways[parameter] = Strategy.MODEL
    return GradientPlan(
        layers,
        frozenset(layer for layer in layers if not all(call.separable for call in traced[layer])),
        tuple(used_tables),
        {module: tuple(wanted) for module, wanted in replays.items()},
        tuple(parameter for parameter, way in ways.items() if way == Strategy.MODEL),
        ways,
        tuple(module for module in uncalled if module not in layers),
    )


def _owners(model: nn.Module) -> dict[Tensor, list[nn.Module]]:
    owners: dict[Tensor, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    # A module that has a name for a parameter of one of its layers, as prediction heads do for a bias, leaves it to it.
    return {
        parameter: [user for user in users if not any(other in users for other in list(user.modules())[1:])]
        for parameter, users in owners.items()
    }


def _tables(model: nn.Module) -> dict[Tensor, nn.Module]:
    """Find T5's relative attention biases: (heads, queries, keys) for all examples, made outside any module call."""
    found: dict[Tensor, nn.Module] = {}
    for module in model.modules():
        table = getattr(module, "relative_attention_bias", None)
        if isinstance(table, nn.Embedding) and callable(getattr(module, "compute_bias", None)):
            found[table.weight] = module
    return found


def table_weights(module: nn.Module) -> list[Tensor]:
    """Return what a shared layer, or a module that makes a bias of relative positions, looks up for all examples."""
    table = getattr(module, "relative_attention_bias", module)
    return list(table.parameters(recurse=False))


def _parents(model: nn.Module) -> dict[nn.Module, nn.Module]:
    return {child: module for module in model.modules() for child in module.children()}


def _rules(users: list[nn.Module], traced: Mapping[nn.Module, list[Call]]) -> dict[nn.Module, Rule]:
    """Return the rules of those users that are known layers, called in a way that their rules can follow."""
    found: dict[nn.Module, Rule] = {}
    for user in users:
        calls = traced[user]
        # An embedding may be looked up once with a leading 1, to be added to what carries the examples.
        once = isinstance(user, nn.Embedding) and all(call.sound and not any(call.outputs) for call in calls)
        if all(call.leaf for call in calls) and (once or all(call.separable for call in calls)):
            rule = find_rule(user)
            if rule is not None:
                found[user] = rule
    return found


def _smallest_around(
    users: list[nn.Module], parents: Mapping[nn.Module, nn.Module], traced: Mapping[nn.Module, list[Call]]
) -> nn.Module | None:
    """Return the innermost module that holds all the users and can run one example at a time; None for the model."""
    module: nn.Module | None = users[0]
    while module is not None and module in parents:
        inside = set(module.modules())
        calls = traced.get(module, [])
        if calls and all(user in inside for user in users) and all(call.separable for call in calls):
            return module
        module = parents[module]
    return None
