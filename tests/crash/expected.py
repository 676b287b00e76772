"""Random recipes over random checkpoints, and what they must give according to the oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import oracle
from tests.checkpoints import write_checkpoint

Vectors = dict[str, list[float]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Half a unit in the last place, and the rounding of float32 arithmetic before it, relative to the size of the numbers.
TOLERANCE = {torch.float32: 2e-4, torch.float64: 2e-4, torch.bfloat16: 2**-8, torch.float16: 2**-10}
METHODS = (
    "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "fisher", "gradient_matching",
    "passthrough",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A recipe, and what it must give.

    Attributes:
        recipe: The recipe; its paths start from the folder of the checkpoints.
        wanted: Name -> numbers, of what is merged.
        copied: Name -> tensor, of what is not.
        dtypes: Name -> dtype in the output.
        scales: Name -> size of the numbers that rounding errors are relative to.
    """

    recipe: dict[str, Any]
    wanted: Vectors
    copied: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    scales: dict[str, float]


@dataclass(frozen=True)
class _Family:
    base: Vectors
    models: list[Vectors]
    fishers: list[Vectors]
    base_fisher: Vectors
    examples: list[int]

    def deltas(self) -> list[Vectors]:
        """Return whole task vectors."""
        return [{name: [x - b for x, b in zip(m[name], self.base[name], strict=True)] for name in m}
                for m in self.models]  # fmt: skip


def random_case(folder: Path, source: random.Random) -> Case:
    """Write random checkpoints into a folder and return a random recipe over them."""
    shapes = _shapes(source)
    dtypes = {name: source.choice(DTYPES[: source.choice((1, 2, 4))]) for name in shapes}
    method = source.choice(METHODS)
    n = 1 if method in ("slerp", "passthrough") else source.randint(1, 4)
    # Models as torch saves them may tie tensors; the output has such a tensor once.
    filled = [name for name, shape in shapes.items() if 0 not in shape]
    tied = source.choice(filled) if filled and source.random() < 0.2 else None
    family = _family(shapes, n, source)
    numbers = {"base": family.base, **{f"m{i}": model for i, model in enumerate(family.models)}}
    held: dict[str, dict[str, Tensor]] = {}
    for i, (label, model) in enumerate(numbers.items()):
        held[label] = {name: torch.tensor(model[name], dtype=dtypes[name]).reshape(shapes[name]) for name in shapes}
        held[label]["ids"] = torch.arange(7) + i
        _write(folder / label, held[label], tied, source)
    for i, fisher in enumerate([family.base_fisher, *family.fishers]):
        tensors = {name: torch.tensor(fisher[name]).reshape(shapes[name]) for name in shapes}
        said = {"train_examples": str(family.examples[i])}
        write_checkpoint(
            folder / ("fisher-base" if i == 0 else f"fisher-m{i - 1}"), tensors, config=None, metadata=said
        )
    excluded = source.choice(list(shapes)) if source.random() < 0.3 and len(shapes) > 1 else None
    recipe, vectors = _METHODS[method](family, source, set(shapes) - {excluded})
    recipe = {"merge_method": method, "seed": recipe.pop("seed", 0), **recipe}
    if excluded is not None:
        recipe["exclude"] = [excluded]
    out = source.choice([None, None, torch.bfloat16, torch.float16, torch.float32])
    if out is not None:
        recipe["out_dtype"] = str(out).removeprefix("torch.")
    donor = held["base" if "base_model" in recipe else "m0"]
    copied = {name: donor[name] for name in ("ids", *([excluded] if excluded else ()))}
    if excluded is not None and out is not None:
        copied[excluded] = copied[excluded].to(out)
    scales = {
        name: max([1.0, *(abs(x) for model in numbers.values() for x in model[name]), *map(abs, vectors[name])])
        for name in vectors
    }
    return Case(recipe, vectors, copied, {name: out or dtypes[name] for name in vectors}, scales)


def check(case: Case, found: Mapping[str, Tensor]) -> None:
    """Fail unless tensors are what a case must give."""
    assert found.keys() == case.wanted.keys() | case.copied.keys(), sorted(found)
    for name, tensor in case.copied.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    for name, wanted in case.wanted.items():
        assert found[name].dtype == case.dtypes[name], name
        distances = [abs(x - y) for x, y in zip(found[name].double().flatten().tolist(), wanted, strict=True)]
        most = TOLERANCE[case.dtypes[name]] * case.scales[name]
        assert max(distances, default=0.0) <= most, f"{name}: {max(distances)} > {most}"


def _shapes(source: random.Random) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(source.randint(1, 9)):
        kind = source.choice(["matrix", "matrix", "vector", "scalar", "empty", "odd"])
        shapes[f"layers.{i}.{kind}"] = {
            "matrix": (source.randint(1, 40), source.randint(1, 40)),
            "vector": (source.randint(1, 700),),
            "scalar": (),
            "empty": (0, source.randint(0, 5)),
            "odd": (1, source.randint(1, 3), 1, source.randint(1, 9)),
        }[kind]
    if source.random() < 0.05:
        # More than one range of the smallest blocks.
        shapes["long"] = (3, 90_001)
    return shapes


def _family(shapes: Mapping[str, tuple[int, ...]], n: int, source: random.Random) -> _Family:
    def model(least: int, most: int) -> Vectors:
        # Multiples of an eighth are exact in every dtype, and so are their differences: what is elected and kept is
        # then the same in float32 as in the oracle's float64.
        return {name: [k / 8 for k in source.choices(range(least, most + 1), k=torch.Size(shape).numel())]
                for name, shape in shapes.items()}  # fmt: skip

    models, fishers = [model(-31, 31) for _ in range(n)], [model(0, 31) for _ in range(n)]
    return _Family(model(-31, 31), models, fishers, model(1, 31), [source.randint(1, 50) for _ in range(n + 1)])


def _write(folder: Path, tensors: dict[str, Tensor], tied: str | None, source: random.Random) -> None:
    write_checkpoint(folder, tensors, shards=source.choice((1, 1, 2, 3)) if tied is None else 1)
    if tied is not None:
        (folder / "model.safetensors").unlink()
        torch.save({**tensors, "tied": tensors[tied]}, folder / "pytorch_model.bin")


def _weights(n: int, source: random.Random) -> list[float]:
    return [source.choice((0.25, 0.5, 1.0, 1.5)) for _ in range(n)]


def _listed(weights: list[float], *, fishers: bool = False, **each: list[float]) -> list[dict[str, Any]]:
    return [
        {"model": f"m{i}", **({"fisher": f"fisher-m{i}"} if fishers else {}),
         "parameters": {"weight": weight, **{key: values[i] for key, values in each.items()}}}
        for i, weight in enumerate(weights)
    ]  # fmt: skip


Made = tuple[dict[str, Any], Vectors]


def _only(model: Vectors, names: set[str]) -> Vectors:
    return {name: vector for name, vector in model.items() if name in names}


def _linear(family: _Family, source: random.Random, names: set[str]) -> Made:
    weights, normalize = _weights(len(family.models), source), source.random() < 0.5
    recipe = {"models": _listed(weights), "parameters": {"normalize": normalize}}
    return recipe, {x: oracle.linear([m[x] for m in family.models], weights, normalize=normalize) for x in names}


def _task_arithmetic(family: _Family, source: random.Random, names: set[str]) -> Made:
    weights, normalize = _weights(len(family.models), source), source.random() < 0.5
    scale, deltas = source.choice((0.5, 1.0, -1.0)), family.deltas()
    parameters = {"normalize": normalize, "lambda": scale}
    recipe = {"base_model": "base", "models": _listed(weights), "parameters": parameters}
    return recipe, {
        x: oracle.task_arithmetic(family.base[x], [d[x] for d in deltas], weights, scale=scale, normalize=normalize)
        for x in names
    }


def _ties(family: _Family, source: random.Random, names: set[str]) -> Made:
    n = len(family.models)
    weights, densities = _weights(n, source), [source.choice((0.0, 0.1, 0.35, 0.5, 1.0)) for _ in range(n)]
    settings: dict[str, Any] = {
        "normalize": source.random() < 0.5, "trim": source.choice(("tensor", "model")),
        "elect": source.choice(("mass", "count")), "zero_sum": source.choice(("plus", "none")),
    }  # fmt: skip
    deltas = [_only(delta, names) for delta in family.deltas()]
    recipe = {"base_model": "base", "models": _listed(weights, density=densities), "parameters": {**settings}}
    return recipe, oracle.ties(_only(family.base, names), deltas, weights, densities, **settings)


def _dare(method: str) -> Callable[[_Family, random.Random, set[str]], Made]:
    def made(family: _Family, source: random.Random, names: set[str]) -> Made:
        n, seed = len(family.models), source.randrange(100)
        weights, densities = _weights(n, source), [source.choice((0.25, 0.5, 1.0)) for _ in range(n)]
        settings: dict[str, Any] = {"normalize": source.random() < 0.5, "rescale": source.random() < 0.5}
        deltas, found = family.deltas(), {}
        for name in names:
            masks = [oracle.keep_mask([seed, 0, i, name], len(family.base[name]), densities[i]) for i in range(n)]
            work = oracle.dare_linear if method == "dare_linear" else oracle.dare_ties
            rows = [delta[name] for delta in deltas]
            found[name] = work(family.base[name], rows, masks, weights, densities, **settings)
        models = _listed(weights, density=densities)
        return {"base_model": "base", "models": models, "parameters": settings, "seed": seed}, found

    return made


def _slerp(family: _Family, source: random.Random, names: set[str]) -> Made:
    t = source.choice((0.0, 0.25, 0.5, 1.0))
    recipe = {"base_model": "base", "models": [{"model": "m0"}], "parameters": {"t": t}}
    return recipe, {x: oracle.slerp(family.base[x], family.models[0][x], t) for x in names}


def _fisher(family: _Family, source: random.Random, names: set[str]) -> Made:
    weights, normalize = _weights(len(family.models), source), source.random() < 0.5
    recipe = {"models": _listed(weights, fishers=True), "parameters": {"normalize_fisher": normalize}}
    models, fishers = ([_only(each, names) for each in group] for group in (family.models, family.fishers))
    if not any(models[0].values()):
        return recipe, models[0]
    return recipe, oracle.fisher(models, fishers, weights, normalize_fisher=normalize)


def _gradient_matching(family: _Family, source: random.Random, names: set[str]) -> Made:
    weights = _weights(len(family.models), source)
    if source.random() < 0.3:
        weights[0] = -weights[0]
    anchor, prior, floor = source.choice(("base", "none")), source.choice((0.5, 2.0)), source.choice((0.0, 0.01))
    parameters = {"prior_precision": prior, "curvature_floor": floor, "anchor": anchor}
    models = _listed(weights, fishers=True)
    recipe = {"base_model": "base", "base_fisher": "fisher-base", "models": models, "parameters": parameters}
    curvatures = [
        {name: oracle.curvature(fisher[name], examples) for name in names}
        for fisher, examples in zip(family.fishers, family.examples[1:], strict=True)
    ]
    base_curvature = {name: oracle.curvature(family.base_fisher[name], family.examples[0]) for name in names}
    if not any(curvatures[0].values()):
        return recipe, _only(family.base, names)
    scales = oracle.matching_scales(
        curvatures, base_curvature=base_curvature, prior_precision=prior, curvature_floor=floor, anchor=anchor
    )
    deltas = family.deltas()
    if source.random() < 0.5:
        recipe["save_precision"] = True
    return recipe, {
        x: oracle.gradient_matching(
            family.base[x], [d[x] for d in deltas], [c[x] for c in curvatures], weights, scales,
            base_curvature=base_curvature[x],
        )
        for x in names
    }  # fmt: skip


def _passthrough(family: _Family, source: random.Random, names: set[str]) -> Made:
    scale = source.choice((0.5, 1.0, -2.0))
    recipe = {"models": [{"model": "m0", "parameters": {"scale": scale}}]}
    return recipe, {x: oracle.passthrough(family.models[0][x], scale) for x in names}


_METHODS: Mapping[str, Callable[[_Family, random.Random, set[str]], Made]] = {
    "linear": _linear, "task_arithmetic": _task_arithmetic, "ties": _ties, "dare_linear": _dare("dare_linear"),
    "dare_ties": _dare("dare_ties"), "slerp": _slerp, "fisher": _fisher, "gradient_matching": _gradient_matching,
    "passthrough": _passthrough,
}  # fmt: skip
