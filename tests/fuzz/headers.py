"""Fuzzes the headers of safetensors files: ``python -m tests.fuzz.headers --inputs 20000``."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import safetensors

from merge_cli.checkpoint import open_checkpoint
from merge_cli.plan import build_plan
from tests.checkpoints import recipe_over
from tests.fuzz.breaking import break_bytes, break_tree, dumped
from tests.fuzz.trying import listing, main

# Bytes per element, from the format's documentation.
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1,
          "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
_DATA_BYTES = 256


def sound(chance: Random) -> tuple[dict[str, Any], int]:
    """Return a header without a fault, and how many bytes of data go with it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if chance.random() < 0.7 else {}
    position = 0
    for number in range(chance.randrange(6)):
        dtype = chance.choice(list(_SIZES))
        shape = [chance.randrange(4) for _ in range(chance.randrange(4))]
        size = _SIZES[dtype]
        for each in shape:
            size *= each
        if position + size > _DATA_BYTES:
            break
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        header[f"model.layers.{number}.{chance.choice('abc')}"] = entry
        position += size
    return header, position


def attempt(chance: Random, folder: Path) -> bool:
    """Break a header, and read and plan the file."""
    header, size = sound(chance)
    raw = dumped(break_tree(header, chance, times=chance.randrange(3)))
    if chance.random() < 0.5:
        raw = break_bytes(raw, chance, times=chance.randrange(1, 4))
    length = len(raw) if chance.random() < 0.9 else chance.choice((0, 1, len(raw) - 1, len(raw) + 1, 2**40, 2**63))
    content = max(0, length).to_bytes(8, "little") + raw + bytes(size)
    if chance.random() < 0.1:
        content = break_bytes(content, chance, times=1)
    (folder / "model.safetensors").write_bytes(content)
    before = listing(folder)
    try:
        checkpoint = open_checkpoint(folder, label="model")
        check(content, checkpoint.tensors)
        models = [{"model": ".", "parameters": {"weight": 1}}] * 2
        plan = build_plan(recipe_over(folder, {"merge_method": "linear", "models": models}))
        assert {task.target.name for task in plan.tasks} == set(checkpoint.tensors)
        assert plan.digest
    finally:
        assert listing(folder) == before
    return True


def check(content: bytes, tensors: Any) -> None:
    """Check an accepted file without this project's code: every byte belongs to one tensor, as the format asks."""
    start = 8 + int.from_bytes(content[:8], "little")
    entries = {name: each for name, each in json.loads(content[8:start]).items() if name != "__metadata__"}
    assert set(entries) == set(tensors)
    spans = []
    for name, each in entries.items():
        low, high = each["data_offsets"]
        size = _SIZES[each["dtype"]]
        for number in each["shape"]:
            size *= number
        assert high - low == size
        assert tensors[name].offset == start + low
        assert tensors[name].shape == tuple(each["shape"])
        spans.append((start + low, start + high))
    position = start
    for low, high in sorted(spans):
        assert low == position
        position = high
    assert position == len(content)
    theirs = {name for name, _ in safetensors.deserialize(content)}
    assert theirs == set(tensors)


if __name__ == "__main__":
    main(attempt, "headers")
