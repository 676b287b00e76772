"""Ways to break plain data, and bytes."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

_DEEP: list[Any] = []
for _ in range(90):
    _DEEP = [_DEEP]

EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 8, 24, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
    10**400, 0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("nan"), "", " ", "0", "1", "nan", "1e400", "\0", "\n",
    "\x1b[31mred", "\u202e", "\ud800", "[red]", "..", "../x", "/etc/passwd", "a/../../b", "~", "~nobody/x", "a+b",
    "x" * 300, "x" * 5000, "9" * 5000, "F32", "BF16", "C64", "float16", "*", "[", "base", "one", [], {}, [0], [[]],
    [0, 0], [1] * 70, {"a": 1}, {"filter": "a", "value": 1}, {"value": [1, 2]}, _DEEP,
)  # fmt: skip
_HOSTILE_BYTES = (
    b"\0", b"\xff", b"\xc0\x80", b"\xef\xbb\xbf", b'"', b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b"[" * 300, b":",
    b",", b"\n", b"\t", b"- ", b"? ", b"&a ", b"*a", b"<<: *a\n", b"!!python/object/apply:os.system [touch made]\n",
    b"!!python/name:os.system ", b"!!binary aGk=", b"!!set {a}", b"!!int x", b"!!float 1:1", b"0x" + b"f" * 3000,
    b"1:1" * 50, b"2001-99-99", b"---\n", b"%YAML 9.9\n", b"~", b"null", b"NaN", b"1e999", b"-9", b"9" * 30, b"\x1b[2J",
)  # fmt: skip


def break_tree(tree: Any, chance: Random, *, times: int) -> Any:
    """Return a copy of plain data with some places replaced, removed, doubled, renamed or wrapped."""
    tree = copy.deepcopy(tree)
    for _ in range(times):
        tree = _broken_once(tree, chance)
    return tree


def _broken_once(tree: Any, chance: Random) -> Any:
    holder, key = tree, None
    parent: Any = None
    while isinstance(holder, (dict, list)) and holder and chance.random() < 0.8:
        parent, key = holder, chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder = parent[key]
    if parent is None:
        return chance.choice(EXTREMES) if chance.random() < 0.1 else tree
    way = chance.randrange(6)
    if way == 0:
        del parent[key]
    elif way == 1:
        other = copy.deepcopy(holder)
        if isinstance(parent, list):
            parent.insert(chance.randrange(len(parent) + 1), other)
        else:
            parent[_name(chance)] = other
    elif way == 2:
        parent[key] = [holder]
    elif way == 3 and isinstance(holder, int):
        parent[key] = holder + chance.choice((-8, -1, 1, 8, 2**20, 2**62))
    elif way == 4 and isinstance(parent, dict):
        parent[_name(chance)] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(chance.choice(EXTREMES))
    return tree


def _name(chance: Random) -> str:
    return chance.choice([each for each in EXTREMES if isinstance(each, str)]) + chance.choice(("", "a", ".0.w"))


def break_bytes(raw: bytes, chance: Random, *, times: int) -> bytes:
    """Return bytes with some of them changed, removed, doubled, moved, or others put between them."""
    found = bytearray(raw)
    for _ in range(times):
        at, other = chance.randrange(len(found) + 1), chance.randrange(len(found) + 1)
        low, high = min(at, other), min(max(at, other), min(at, other) + 40)
        way = chance.randrange(5)
        if way == 0 and at < len(found):
            found[at] = chance.randrange(256)
        elif way == 1:
            del found[low:high]
        elif way == 2:
            found[at:at] = found[low:high]
        elif way == 3:
            found[at:at] = chance.choice(_HOSTILE_BYTES)
        else:
            del found[at:]
            found += raw[chance.randrange(len(raw) + 1) :]
    return bytes(found)


def dumped(tree: Any) -> bytes:
    """Write data as JSON, with what JSON has no word for in Python's own."""
    return json.dumps(tree, ensure_ascii=True).encode()
