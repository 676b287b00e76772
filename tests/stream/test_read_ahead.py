"""What the system is told of what will be read, and of what will not be read again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from merge_cli.stream import engine, page_cache, with_sample_warnings
from tests.checkpoints import recipe_over, write_checkpoint
from tests.crash.seam import Seam

# Three ranges of 16 blocks of 16,384 elements, the last one short.
NUMEL = 600_000


def planned(folder: Path) -> MergePlan:
    for name, value in (("base", 0.0), ("one", 1.0)):
        write_checkpoint(folder / name, {"w": torch.full((NUMEL,), value)})
    models = [{"model": "one", "parameters": {"weight": 1}}]
    recipe = recipe_over(folder, {"merge_method": "task_arithmetic", "base_model": "base", "models": models})
    return with_sample_warnings(build_plan(recipe, memory=2**20, threads=1))


def told(files: Seam, what: str, path: Path) -> list[tuple[int, int]]:
    """Return the ranges of a file of which something was said, in elements."""
    found = [call.arguments[1:] for call in files.made if call.name == what and call.path == path]
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return [((offset - header) // 4, count // 4) for offset, count in found]


def test_each_range_is_announced_before_it_is_read(tmp_path: Path) -> None:
    plan, files = planned(tmp_path), Seam()
    merge(plan, tmp_path / "out", sync=False, files=files, input_digests=False, sample_warnings=False)
    step = 16 * plan.block_numel
    ranges = [(start, min(step, NUMEL - start)) for start in range(0, NUMEL, step)]
    assert len(ranges) > 1
    for name in ("base", "one"):
        path = tmp_path / name / "model.safetensors"
        assert told(files, "read_ahead", path) == ranges
        assert told(files, "drop_cache", path) == []
        order = [call.name for call in files.made if call.path == path and call.name in ("read_ahead", "pread")]
        assert order[0] == "read_ahead"


def test_what_would_crowd_the_memory_is_dropped_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "exceeds_page_cache", lambda plan: True)
    plan, files = planned(tmp_path), Seam()
    merge(plan, tmp_path / "out", files=files, input_digests=False, sample_warnings=False)
    for name in ("base", "one"):
        path = tmp_path / name / "model.safetensors"
        assert told(files, "drop_cache", path) == told(files, "read_ahead", path)
    # The output after it was synced: dirty pages cannot be dropped.
    shard = [call.name for call in files.made if call.path.suffix == ".safetensors" and "out.partial" in str(call.path)]
    assert shard.index("drop_cache") > len(shard) - 1 - shard[::-1].index("sync")


def test_what_is_hashed_is_dropped_when_it_was_hashed_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "exceeds_page_cache", lambda plan: True)
    plan, files = planned(tmp_path), Seam()
    merge(plan, tmp_path / "out", files=files, sample_warnings=False)
    for name in ("base", "one"):
        path = tmp_path / name / "model.safetensors"
        calls = [call for call in files.made if call.path == path]
        dropped = [call.arguments[1:] for call in calls if call.name == "drop_cache"]
        # Each byte of the file once, in order, and only when the worker has read all of it.
        assert [start for start, _ in dropped] == [0, *(start + count for start, count in dropped[:-1])]
        assert sum(dropped[-1]) == path.stat().st_size
        last = max(call.number for call in calls if call.name == "read_ahead")
        assert min(call.number for call in calls if call.name == "drop_cache") > last


@pytest.mark.parametrize(("nbytes", "crowds"), [(768_001, True), (768_000, False)])
def test_three_quarters_of_the_memory_that_is_there_may_be_filled(
    nbytes: int, crowds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       9999999 kB\nMemAvailable:      1000 kB\nBuffers: 5 kB\n")
    monkeypatch.setattr(page_cache, "_MEMORY", tmp_path / "meminfo")
    plan: Any = SimpleNamespace(read_bytes=nbytes - 1000, written_bytes=1000)
    assert page_cache.exceeds_page_cache(plan) is crowds
    monkeypatch.setattr(page_cache, "_MEMORY", tmp_path / "none")
    assert not page_cache.exceeds_page_cache(plan)
