"""Fuzzes the journals of merges that were stopped: ``python -m tests.fuzz.journals --inputs 2000``."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from merge_cli.stream.journal import JOURNAL_FILE
from tests.checkpoints import recipe_over, write_checkpoint
from tests.crash.seam import StopAfter, Stopped
from tests.fuzz.breaking import break_bytes, break_tree
from tests.fuzz.trying import main

_RECIPE = {
    "merge_method": "gradient_matching", "base_model": "base", "save_precision": True,
    "models": [{"model": name, "fisher": f"fisher-{name}"} for name in ("one", "two")],
    "parameters": {"anchor": "base", "prior_precision": 1.0, "curvature_floor": 0},
}  # fmt: skip
_SUMS = ("step", "delta_0", "mismatch_linear", "mismatch_task_arithmetic", "x")
_ODD: tuple[Any, ...] = (
    [10**400], [float("nan")], [1e308] * 3, [-1.0], [float("inf"), -float("inf")], ["x"], [], [[]], "x", None, 5,
)  # fmt: skip
_NAMES = tuple(f"layers.{number}.w" for number in range(6))


@functools.cache
def family() -> Path:
    """Make a base, two models and their Fishers, and the whole merge of them, once in a process."""
    folder = Path(tempfile.mkdtemp())
    for number, name in enumerate(["base", "one", "two"]):
        write_checkpoint(folder / name, {tensor: [number + 0.5, 2.0] for tensor in _NAMES})
        fisher = {tensor: [1.0 + number, 2.0] for tensor in _NAMES}
        write_checkpoint(folder / f"fisher-{name}", fisher, config=None, metadata={"train_examples": "5"})
    merge(planned(folder), folder / "whole" / "out", sync=False, input_digests=False)
    return folder


@functools.cache
def stopped() -> Path:
    """Make what a merge has left that was stopped after some ranges, once in a process."""
    out = family() / "stopped" / "out"
    out.parent.mkdir()
    with contextlib.suppress(Stopped):
        merge(planned(family()), out, sync=False, input_digests=False, files=StopAfter(8))
    return out.with_name("out.partial")


def planned(folder: Path) -> MergePlan:
    """Return the plan of the merge."""
    return build_plan(recipe_over(folder, _RECIPE), threads=1)


def attempt(chance: Random, folder: Path) -> bool:
    """Break the lines of a journal under right checksums, or its bytes, and let the merge go on."""
    whole = family() / "whole" / "out"
    shutil.copytree(stopped(), folder / "out.partial")
    journal = folder / "out.partial" / JOURNAL_FILE
    lines = [json.loads(line.partition(b" ")[2]) for line in journal.read_bytes().splitlines()]
    # What decides whether the merge is the same one comes first, and is refused as a rule.
    first, rest = lines[0], lines[1:]
    if chance.random() < 0.3:
        first = break_tree(first, chance, times=1)
    broken = break_tree(rest, chance, times=chance.randrange(4))
    lines = broken if isinstance(broken, list) else []
    for line in lines if chance.random() < 0.3 else ():
        with contextlib.suppress(TypeError, KeyError, IndexError):
            line[3]["merged"][1][chance.choice(_SUMS)] = chance.choice(_ODD)
    content = b"".join(_line(line) for line in (first, *(broken if isinstance(broken, list) else [broken])))
    if chance.random() < 0.2:
        content = break_bytes(content, chance, times=chance.randrange(1, 3))
    journal.write_bytes(content)
    merge(planned(family()), folder / "out", sync=False, input_digests=False)
    json.loads((folder / "out" / "merge_manifest.json").read_text(), parse_constant=_no_number)
    for file in ("model.safetensors", "precision/model.safetensors"):
        assert (folder / "out" / file).read_bytes() == (whole / file).read_bytes()
    return True


def _no_number(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _line(content: Any) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


if __name__ == "__main__":
    main(attempt, "journals")
