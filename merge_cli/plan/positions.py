"""Where a tensor stands among the layers, read off its name.

A layer is the first number between dots in a tensor's name (``model.layers.3.mlp...``); tensors that share what stands
before it form a stack. A stack counts as the model's layers where none is missing and its height is one that the
configuration names; otherwise it is some numbered list of modules, such as a classifier's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# A longer number is no layer, and Python refuses to read one of thousands of digits.
_NUMBERED = re.compile(r"^(.*?)\.(\d{1,9})\.")
_LAYER_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
    "decoder_num_hidden_layers",
)  # fmt: skip


def layer_positions(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, float]:
    """Return each tensor's position t in [0, 1]: i / (L - 1) in layer i of L, 1 where there is one layer, else 0.

    Args:
        names: Tensor names.
        config: The model's configuration; where it names no number of layers that fits, every stack counts.
    """
    found = {name: match for name in names if (match := _NUMBERED.match(name))}
    layers: dict[str, set[int]] = {}
    for match in found.values():
        layers.setdefault(match[1], set()).add(int(match[2]))
    heights = {stack: max(numbers) + 1 for stack, numbers in layers.items()}
    named = _layer_counts(config)
    stacks = {stack for stack, height in heights.items() if height == len(layers[stack]) and height in named}
    stacks = stacks or set(heights)
    return {name: _position(int(match[2]), heights[match[1]]) for name, match in found.items() if match[1] in stacks}


def _position(layer: int, layers: int) -> float:
    return layer / (layers - 1) if layers > 1 else 1.0


def _layer_counts(config: Mapping[str, Any]) -> set[int]:
    """Return every number of layers in a configuration, those of its parts (text_config, vision_config) included."""
    counts = {config[key] for key in _LAYER_KEYS if isinstance(config.get(key), int)}
    for value in config.values():
        if isinstance(value, dict):
            counts |= _layer_counts(value)
    return counts
