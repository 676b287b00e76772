"""Small models made from a seed, with every input that a method can ask for, and the same numbers for an oracle."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from merge_cli.methods.contract import Block, Input, Masks
from merge_cli.testing.arrays import Numbers

Shapes = Mapping[str, tuple[int, ...]]
Model = dict[str, dict[Input, Numbers]]


@dataclass(frozen=True)
class PlainTensor:
    """One tensor in Python's own numbers, for an oracle: lists of float64, no arrays.

    Attributes:
        name: Its name.
        shape: Its shape; the lists are flat.
        models: The models θᵢ, one list each.
        base: The base θ₀.
        deltas: θᵢ − θ₀, one list per model.
        fisher: The models' Fisher diagonals on the mean scale.
        base_fisher: The base's.
        curvature: The models' curvatures on the sum scale.
        base_curvature: The base's.
        gradients: The gradients of the models' summed losses.
    """

    name: str
    shape: tuple[int, ...]
    models: list[list[float]]
    base: list[float]
    deltas: list[list[float]]
    fisher: list[list[float]]
    base_fisher: list[float]
    curvature: list[list[float]]
    base_curvature: list[float]
    gradients: list[list[float]]

    def keep_mask(self, density: tuple[float, ...], *, seed: int = 0) -> list[list[int]]:
        """Return what ``block.keep_mask(density)`` is for this tensor: ones and zeros, one list per model."""
        rows = np.zeros((len(density), len(self.base)), dtype=np.float32)
        block = Block({Input.MODELS: rows}, Masks(seed, 0, self.name, len(density), 0))  # type: ignore[dict-item]
        return [[int(kept) for kept in row] for row in block.keep_mask(density).tolist()]


Oracle = Callable[[Mapping[str, PlainTensor], Any], Mapping[str, Any]]
"""``(tensors, params) -> name -> the merged numbers``: a list from a method, one list per model from a step."""


def per_tensor(oracle: Callable[[PlainTensor, Any], Any]) -> Oracle:
    """Return an oracle of whole models from one of a single tensor."""
    return lambda tensors, params: {name: oracle(tensor, params) for name, tensor in tensors.items()}


def plain(tensors: Model, shapes: Shapes) -> dict[str, PlainTensor]:
    """Return tensors as an oracle is given them."""
    return {
        name: PlainTensor(name, shapes[name], **{key.value: rows.tolist() for key, rows in inputs.items()})
        for name, inputs in tensors.items()
    }


@functools.cache
def _normal_numbers() -> Numbers:
    return np.random.default_rng(0).standard_normal(200_000).astype(np.float32)


def smooth_tensors(seed: int, n: int, shapes: Shapes) -> Model:
    """Return random real numbers without repetition within a vector, for n models."""
    source = random.Random(seed)

    def vector(numel: int) -> Numbers:
        start = source.randrange(len(_normal_numbers()) - numel)
        return _normal_numbers()[start : start + numel].copy()

    def rows(numel: int) -> Numbers:
        return np.stack([vector(numel) for _ in range(n)])

    tensors = {}
    for name, shape in shapes.items():
        numel = math.prod(shape)
        base = vector(numel)
        models = base + rows(numel)
        tensors[name] = {
            Input.MODELS: models,
            Input.BASE: base,
            Input.DELTAS: models - base,
            Input.FISHER: np.square(rows(numel)),
            Input.BASE_FISHER: np.square(vector(numel)),
            Input.CURVATURE: np.square(rows(numel)) * 100,
            Input.BASE_CURVATURE: np.square(vector(numel)) * 100,
            Input.GRADIENTS: rows(numel),
        }
    return tensors


def coarse_tensors(seed: int, n: int, shapes: Shapes) -> Model:
    """Return small multiples of 1/8 with many zeros, repetitions and exact cancellations, for n models.

    Float32 adds them without rounding. Now and then a whole Fisher is zero, as that of a model that no example reached.
    """
    source = random.Random(seed)

    def eighths(rows: int | None, numel: int, low: int, high: int) -> Numbers:
        numbers = [source.choice([0, source.randint(low, high)]) / 8 for _ in range((rows or 1) * numel)]
        flat = np.array(numbers, dtype=np.float32)
        return flat if rows is None else flat.reshape(rows, numel)

    dead = [source.random() < 0.15 for _ in range(n)]
    tensors = {}
    for name, shape in shapes.items():
        numel = math.prod(shape)
        base, deltas = eighths(None, numel, -64, 64), eighths(n, numel, -4, 4)
        fisher = eighths(n, numel, 0, 16)
        fisher[dead] = 0
        tensors[name] = {
            Input.MODELS: base + deltas,
            Input.BASE: base,
            Input.DELTAS: deltas,
            Input.FISHER: fisher,
            Input.BASE_FISHER: eighths(None, numel, 0, 16),
            Input.CURVATURE: eighths(n, numel, 0, 32),
            Input.BASE_CURVATURE: eighths(None, numel, 0, 32),
            Input.GRADIENTS: eighths(n, numel, -8, 8),
        }
    return tensors


def copies_of_one(seed: int, n: int, shapes: Shapes, *, base_too: bool) -> Model:
    """Return n times the same model, with the same Fisher; the base is that model too with ``base_too``.

    There are no gradients: those that do not belong to a model would say that it is somewhere else.
    """
    tensors = smooth_tensors(seed, 1, shapes)
    for inputs in tensors.values():
        del inputs[Input.GRADIENTS]
        if base_too:
            inputs[Input.BASE] = inputs[Input.MODELS][0].copy()
            inputs[Input.DELTAS] = np.zeros_like(inputs[Input.DELTAS])
    return {
        name: {key: rows.repeat(n, axis=0) if rows.ndim == 2 else rows for key, rows in inputs.items()}
        for name, inputs in tensors.items()
    }
