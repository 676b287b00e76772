"""Fuzzes indices, configurations, manifests and what lies beside: ``python -m tests.fuzz.indexes --inputs 5000``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

from merge_cli.checkpoint import open_checkpoint
from merge_cli.plan import build_plan
from merge_cli.report import model_card
from tests.checkpoints import recipe_over, write_header
from tests.fuzz.breaking import EXTREMES, break_bytes, break_tree, dumped
from tests.fuzz.trying import listing, main

_SHARDS = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "torch_dtype": "float32",
    "text_config": {"num_hidden_layers": 2, "dtype": "float32"},
    "_name_or_path": "org/name", "quantization_config": None,
}  # fmt: skip
_FILE_NAMES = [
    each for each in EXTREMES if isinstance(each, str) and 0 < len(each) < 99 and not {"/", "\0", "\ud800"} & set(each)
]
_MANIFEST = {"inputs": [{"role": "base", "reference": "origin"}], "method": {"name": "ties"}, "format": 1}


def attempt(chance: Random, folder: Path) -> bool:
    """Break one or two of a checkpoint's small files, or what kind of file its shards are, and plan over it."""
    model = folder / "model"
    weight_map = {}
    for number, shard in enumerate(_SHARDS):
        names = [f"model.layers.{number}.{letter}" for letter in "ab"]
        write_header(model / shard, {name: ("F32", [2], 8) for name in names})
        weight_map |= dict.fromkeys(names, shard)
    write_header(folder / "one.safetensors", {name: ("F32", [2], 8) for name in weight_map})
    (folder / "outside.safetensors").write_bytes((model / _SHARDS[0]).read_bytes())
    (folder / "secret.json").write_text("{}")
    texts: dict[str, Any] = {
        "model.safetensors.index.json": {"metadata": {"total_size": 32}, "weight_map": weight_map},
        "config.json": _CONFIG,
        "merge_manifest.json": _MANIFEST,
        "tokenizer.json": {"version": "1.0"},
    }
    wrong = set(chance.sample(sorted(texts), chance.randrange(1, 3)))
    for name, content in texts.items():
        raw = dumped(break_tree(content, chance, times=chance.randrange(1, 4)) if name in wrong else content)
        if name in wrong and chance.random() < 0.4:
            raw = break_bytes(raw, chance, times=chance.randrange(1, 4))
        (model / name).write_bytes(raw)
    if chance.random() < 0.3:
        _replace(model / chance.choice([*texts, *_SHARDS]), folder, chance)
    before = listing(folder)
    try:
        checkpoint = open_checkpoint(model)
        for identity in checkpoint.files:
            assert Path(os.path.realpath(identity.path)).parent == model
        check_plan(folder)
    finally:
        assert listing(folder) == before
    return True


def check_plan(folder: Path) -> None:
    """Plan over the model as base and as model, and write what would stand beside the weights."""
    one = {"model": "one.safetensors", "parameters": {"weight": [0, 1]}}
    recipe = {"merge_method": "task_arithmetic", "base_model": "model", "models": [one]}
    plan = build_plan(recipe_over(folder, recipe))
    assert all(Path(os.path.realpath(path)).parent == folder / "model" for path in plan.side_files.values())
    written = json.dumps(plan.config, indent=2, ensure_ascii=False) + model_card(plan, "out", tool="tool")
    assert len((written + "".join(plan.warnings)).encode("utf-8")) < 200_000


def _replace(path: Path, folder: Path, chance: Random) -> None:
    """Put something else than a regular file of its own where a file was."""
    path.unlink()
    way = chance.randrange(7)
    outside = folder / ("outside.safetensors" if path.suffix == ".safetensors" else "secret.json")
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        path.mkdir()
    elif way == 2:
        path.symlink_to(outside)
    elif way == 3:
        path.symlink_to(path.name)
    elif way == 4:
        path.symlink_to("/dev/zero")
    elif way == 5:
        with path.open("wb") as file:
            file.truncate(2**34)
    else:
        path.with_name(chance.choice(_FILE_NAMES) + path.suffix).touch()


if __name__ == "__main__":
    main(attempt, "indices")
