"""Fuzzes recipes: ``python -m tests.fuzz.recipes --inputs 5000``."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import yaml

from merge_cli.methods import find_method, method_names
from merge_cli.plan import build_plan
from merge_cli.recipe import load_recipe
from merge_cli.report import model_card
from merge_cli.testing import typical_params
from tests.checkpoints import write_checkpoint
from tests.fuzz.breaking import EXTREMES, break_bytes, break_tree
from tests.fuzz.trying import listing, main
from tests.stream.families import N, recipe_for

_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
_MERGING = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name}\n  <<: [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
_PLACES = (
    "models.0.model", "models.0.parameters.weight", "models.9.x", "parameters.lambda", "seed", "a.b.c", "models.-1",
    "models.", "dtype", "exclude", "prepare.dare.drop_rate", "models",
)  # fmt: skip


@functools.cache
def family() -> Path:
    """Make the checkpoints that the recipes name, once in a process."""
    folder = Path(tempfile.mkdtemp())
    for number, name in enumerate(["base", "one", "two", "three"]):
        write_checkpoint(folder / name, {"layers.0.w": [1.0 + number, 2.0], "layers.1.w": [3.0], "head": [4.0]})
        for kind in ("fisher", "gradient"):
            tensors = {"layers.0.w": [1.0, 2.0], "layers.1.w": [3.0], "head": [4.0]}
            write_checkpoint(folder / f"{kind}-{name}", tensors, config=None, metadata={"train_examples": "5"})
    return folder


@functools.cache
def recipes() -> tuple[dict[str, Any], ...]:
    """Return a sound recipe for each method, and one with everything."""
    found = []
    for name in method_names():
        method = find_method(name)
        found.append(recipe_for(name, typical_params(method.params, min(N, method.models[1] or N))[0]))
    more = {
        "prepare": {"dare": {"drop_rate": 0.5}, "keep_largest": {"density": 0.5, "scope": "model"}},
        "dtype": "bf16",
    }
    exclude = ["head", {"pattern": "layers.1.*", "from": "one"}]
    return (*found, {**found[-1], **more, "exclude": exclude, "out_dtype": "float32", "name": "x"})


def text(chance: Random) -> bytes:
    """Return a broken recipe."""
    tree = break_tree(chance.choice(recipes()), chance, times=chance.randrange(4))
    # JSON is YAML; what dumps as YAML differs in style.
    style = chance.random() < 0.5
    try:
        raw = (yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) if style else json.dumps(tree)).encode()
    except (ValueError, yaml.YAMLError):
        raw = json.dumps(tree).encode()
    if chance.random() < 0.5:
        raw = break_bytes(raw, chance, times=chance.randrange(1, 5))
    if chance.random() < 0.05:
        raw += b"\n" + chance.choice((_BOMB, _MERGING)).encode()
    return raw


def attempt(chance: Random, folder: Path) -> bool:
    """Break a recipe, and load and plan it."""
    place = family()
    path = folder / "r.yml"
    path.write_bytes(text(chance))
    before = listing(folder), listing(place), listing(Path.cwd()) if Path.cwd() == folder else []
    overrides = [_override(chance)] if chance.random() < 0.2 else []
    try:
        recipe = load_recipe(path, overrides=overrides)
        plan = build_plan(recipe.with_origin(replace(recipe.origin, folder=place)), threads=2)
        assert plan.digest
        assert sum(shard.size for shard in plan.layout.shards) == plan.written_bytes
        assert len(model_card(plan, "out", tool="tool").encode("utf-8")) < 1_000_000
        "".join(plan.warnings).encode("utf-8")
    finally:
        after = listing(folder), listing(place), listing(Path.cwd()) if Path.cwd() == folder else []
        assert after == before
        assert not (Path.cwd() / "made").exists()
    return True


def _override(chance: Random) -> str:
    value = chance.choice(EXTREMES)
    text = value if isinstance(value, str) else json.dumps(value) if not _is_long(value) else "null"
    return f"{chance.choice(_PLACES)}={text}"


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > 10**40


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(attempt, "recipes")
