"""Small checkpoints and a recipe for every way through the program; merges, and what they leave on disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.digest_file import write_digests
from merge_cli.kernels import GRAIN
from merge_cli.plan import MergePlan, build_plan
from tests.checkpoints import recipe_over, write_checkpoint

# Two ranges of the smallest blocks, and more tensors than threads; one element, none, and no dimension at all.
SHAPES: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {
    "layers.0.long": ((17, GRAIN + 5), torch.bfloat16),
    "layers.0.w": ((13, 11), torch.float32),
    "layers.1.w": ((13, 11), torch.float16),
    "layers.1.none": ((0, 3), torch.float32),
    "head": ((5, 7), torch.bfloat16),
    "scale": ((), torch.float32),
}
TINY = {name: shape for name, shape in SHAPES.items() if name != "layers.0.long"}

Recipe = dict[str, Any]


def write_models(
    folder: Path, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = SHAPES, *, pickled: bool = False
) -> Path:
    """Write a base, two models, and a Fisher and a gradient for each; models as torch saves them, if wanted."""
    for number, name in enumerate(["base", "one", "two"]):
        source, common = torch.Generator().manual_seed(number), torch.Generator().manual_seed(99)
        model: dict[str, Tensor] = {}
        for tensor, (shape, dtype) in shapes.items():
            start, delta = torch.randn(shape, generator=common), torch.randn(shape, generator=source)
            model[tensor] = (start + 0.1 * delta * (number > 0)).to(dtype)
        model["ids"] = torch.arange(300) + number
        write_checkpoint(folder / name, model, shards=2 if name == "two" else 1)
        if pickled:
            for path in (folder / name).glob("model*"):
                path.unlink()
            torch.save(model, folder / name / "pytorch_model.bin")
        (folder / name / "tokenizer.json").write_text('{"vocab": {}}')
        said = {"train_examples": str(100 + number)}
        for kind in ("fisher", "gradient"):
            values = {tensor: torch.randn(shape, generator=source) for tensor, (shape, _) in shapes.items()}
            if kind == "fisher":
                values = {tensor: value.square() for tensor, value in values.items()}
            write_checkpoint(folder / f"{kind}-{name}", values, config=None, metadata=said)
    # What an earlier merge may have written.
    shutil.copytree(folder / "one", folder / "older")
    write_digests(folder / "older", Files(), sync=False)
    return folder


def _models(**more: Any) -> list[dict[str, Any]]:
    return [
        {"model": name, "fisher": f"fisher-{name}", "parameters": {"weight": weight, **more}}
        for name, weight in (("one", 1.0), ("two", 0.5))
    ]


def _over_base(method: str, parameters: Mapping[str, Any], **more: Any) -> Recipe:
    content = {"merge_method": method, "base_model": "base", "parameters": dict(parameters), "seed": 3}
    return {**content, "models": _models(), **more}


RECIPES: Mapping[str, Recipe] = {
    "linear": {"merge_method": "linear", "models": _models()},
    "task_arithmetic": _over_base("task_arithmetic", {"lambda": 0.7}, exclude=["head"]),
    "ties of each tensor": _over_base("ties", {"density": 0.4}),
    "ties of the model": _over_base("ties", {"density": 0.4, "trim": "model"}),
    "dare_ties": _over_base("dare_ties", {"density": 0.5, "rescale": "l1"}),
    "dare_linear": _over_base("dare_linear", {"density": 0.5}, out_dtype="float16"),
    "slerp": _over_base("slerp", {"t": 0.3}, models=[{"model": "one"}]),
    "fisher": _over_base("fisher", {"include_base": True}, base_fisher="fisher-base"),
    "gradient_matching": _over_base(
        "gradient_matching",
        {"prior_precision": 0.5},
        base_fisher="fisher-base",
        save_precision=True,
        models=[{**each, "gradient": f"gradient-{each['model']}"} for each in _models()],
    ),
    "removal": _over_base(
        "gradient_matching", {"prior_precision": 0.5, "anchor": "base", "weight": -0.5}, base_fisher="fisher-base",
        models=[{"model": "one", "fisher": "fisher-one"}],
    ),
    "passthrough": {"merge_method": "passthrough", "models": [{"model": "one", "parameters": {"scale": 0.5}}]},
    "copies": {"merge_method": "passthrough", "models": [{"model": "two"}]},
    "steps": _over_base(
        "ties", {"density": 0.5, "trim": "model"},
        prepare={"dare": {"drop_rate": 0.5, "rescale": "l1"}, "keep_largest": {"density": 0.5, "scope": "model"}},
    ),
}  # fmt: skip


def planned(folder: Path, recipe: Mapping[str, Any], **options: Any) -> MergePlan:
    """Plan a recipe over checkpoints, in blocks as small as they get unless told otherwise."""
    from dataclasses import replace

    plan = build_plan(recipe_over(folder, recipe), **{"threads": 2, **options})
    return plan if "memory" in options else replace(plan, block_numel=GRAIN)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too: relative path -> bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def digest(folder: Path) -> str:
    """Return one digest of all that is below a folder."""
    whole = hashlib.sha256()
    for name, content in contents(folder).items():
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def shown(folder: Path) -> dict[str, bytes]:
    """Return the files that belong to a checkpoint, which are those not hidden."""
    return {name: content for name, content in contents(folder).items() if not name.startswith(".")}


def check_sums(folder: Path) -> None:
    """Fail unless ``SHA256SUMS`` lists every other file of a checkpoint with its digest."""
    held = shown(folder)
    lines = held.pop("SHA256SUMS").decode().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in held.items()}
