"""The layer in a tensor's name, and the tensor's position among the layers.

A layer is the first number between dots in a tensor's name (``model.layers.3.mlp...``); tensors that share what stands
before it form a stack. A stack counts as the model's layers where none is missing and its height is one that the
configuration names; otherwise it is some numbered list of modules, such as a classifier's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A longer number is no layer, and Python refuses to read one of thousands of digits.
_NUMBERED = re.compile(r"^(.*?)\.(\d{1,9})\.")
_LAYER_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
    "decoder_num_hidden_layers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """The layer in a tensor's name: ``model.layers``, ``3`` and ``mlp.up_proj.weight`` of the three joined by dots."""

    stack: str
    number: int
    rest: str


def split_layer(name: str) -> Layer | None:
    """Return the layer in a tensor's name; None where the name has none."""
    match = _NUMBERED.match(name)
    return Layer(match[1], int(match[2]), name[match.end() :]) if match else None


def layer_of(name: str) -> str:
    """Return a tensor's layer (``model.layers.0``), or the module it is in where it is outside of layers."""
    match = _NUMBERED.match(name)
    return f"{match[1]}.{match[2]}" if match else name.rpartition(".")[0] or name


def over_layers(pattern: str) -> str:
    """Return a pattern of tensor names with a wildcard for every number between dots: of layers, and of experts."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", pattern)


def layer_positions(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, float]:
    """Return each tensor's position t in [0, 1]: i / (L - 1) in layer i of L, 1 where there is one layer, else 0.

    Args:
        names: Tensor names.
        config: The model's configuration; where it names no number of layers that fits, every stack counts.
    """
    found = {name: layer for name in names if (layer := split_layer(name)) is not None}
    stacks = layer_stacks(found, config)
    return {name: _position(each.number, stacks[each.stack]) for name, each in found.items() if each.stack in stacks}


def layer_stacks(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, int]:
    """Return each stack of layers with its height; see :func:`layer_positions` for the arguments."""
    layers: dict[str, set[int]] = {}
    for name in names:
        layer = split_layer(name)
        if layer is not None:
            layers.setdefault(layer.stack, set()).add(layer.number)
    heights = {stack: max(numbers) + 1 for stack, numbers in layers.items()}
    named = _layer_counts(config)
    stacks = {stack for stack, height in heights.items() if height == len(layers[stack]) and height in named}
    return {stack: height for stack, height in heights.items() if stack in stacks or not stacks}


def with_layers(config: Mapping[str, Any], kept: Sequence[tuple[Any, int]], height: int) -> dict[str, Any]:
    """Return a configuration for a model of other layers.

    Args:
        config: That of a model of ``height`` layers.
        kept: For each layer of the new model, in order, the configuration and the number that it had.
        height: The layers of the model that the configuration is of.

    Returns:
        The configuration with the new number of layers, and with what it lists of each layer (``layer_types``) in the
        new order.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        others = [each.get(key) if isinstance(each, Mapping) else None for each, _ in kept]
        if key in _LAYER_KEYS and value == height:
            found[key] = len(kept)
        elif isinstance(value, dict) and all(isinstance(each, dict) for each in others):
            parts = [(each, number) for each, (_, number) in zip(others, kept, strict=True)]
            found[key] = with_layers(value, parts, height)
        elif "layer" in key and isinstance(value, list) and len(value) == height:
            lists = [(each, number) for each, (_, number) in zip(others, kept, strict=True)]
            whole = all(isinstance(each, list) and number < len(each) for each, number in lists)
            found[key] = [each[number] for each, number in lists if isinstance(each, list)] if whole else value
        else:
            found[key] = value
    return found


def _position(layer: int, layers: int) -> float:
    return layer / (layers - 1) if layers > 1 else 1.0


def _layer_counts(config: Mapping[str, Any]) -> set[int]:
    """Return every number of layers in a configuration, those of its parts (text_config, vision_config) included."""
    counts = {config[key] for key in _LAYER_KEYS if isinstance(config.get(key), int)}
    for value in config.values():
        if isinstance(value, dict):
            counts |= _layer_counts(value)
    return counts
