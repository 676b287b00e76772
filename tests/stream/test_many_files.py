"""A merge of more files than a process may have open."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from merge_cli.checkpoint import Files
from merge_cli.plan import build_plan
from merge_cli.run import merge
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint

MODELS, SHARDS = 50, 100


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Watching(Files):
    """Notes how many descriptors the process has at most while it reads."""

    most = 0

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        self.most = max(self.most, len(list(Path("/proc/self/fd").iterdir())))
        return super().pread(fd, view, offset)


def test_fifty_checkpoints_of_a_hundred_shards_are_merged_into_a_hundred_shards(
    few_descriptors: None, tmp_path: Path
) -> None:
    names = [f"layers.{shard}.w" for shard in range(SHARDS)]
    for model in range(MODELS):
        tensors = {name: torch.tensor([float(model), float(shard)]) for shard, name in enumerate(names)}
        write_checkpoint(tmp_path / str(model), tensors, shards=SHARDS)
    models = [{"model": str(model), "parameters": {"weight": 1}} for model in range(MODELS)]
    files = Watching()
    recipe = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    plan = build_plan(recipe_over(tmp_path, recipe), shard_size=8, files=files)
    assert sum(len(each.files) for each in plan.inputs) == MODELS * SHARDS
    assert len(plan.layout.shards) == SHARDS
    merge(plan, tmp_path / "out", sync=True, files=files)
    # Half of what the process may have is for inputs and output, and the tests have some of their own.
    assert 64 < files.most < 200
    # The sum of 0 to 49, and fifty times a number that all models share.
    expected = {name: [1225.0, 50.0 * shard] for shard, name in enumerate(names)}
    assert {name: values.tolist() for name, values in read_checkpoint(tmp_path / "out").items()} == expected
