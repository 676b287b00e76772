import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from merge_cli.checkpoint import DType, ShardWriter, plan_shards
from merge_cli.checkpoint.fd_cache import Descriptors, most_descriptors
from merge_cli.errors import ResourceError


@pytest.fixture
def few() -> Iterator[int]:
    """Allow the process few descriptors meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield 256
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_number_of_descriptors_follows_the_limit_of_the_process(few: int) -> None:
    # Inputs, output and posterior precision take a quarter each; a quarter is left for everything else.
    assert most_descriptors() == 64


def test_a_file_used_again_is_not_opened_again_and_the_one_used_longest_ago_goes_first() -> None:
    opened: list[str] = []
    closed: list[str] = []

    def open_file(path: Path) -> int:
        opened.append(path.name)
        return len(opened)

    held = Descriptors(open_file, lambda path, fd: closed.append(path.name), most_open=2)
    for name in ("a", "b", "a", "c"):
        with held.use(Path(name)):
            pass
    assert (opened, closed) == (["a", "b", "c"], ["b"])
    held.close()
    assert sorted(closed) == ["a", "b", "c"]


def test_a_file_in_use_is_not_closed() -> None:
    closed: list[str] = []
    held = Descriptors(lambda path: 1, lambda path, fd: closed.append(path.name), most_open=1)
    with held.use(Path("a")), held.use(Path("b")):
        assert closed == []
    with held.use(Path("c")):
        assert sorted(closed) == ["a", "b"]


def test_all_files_are_closed_though_one_of_them_fails_to() -> None:
    closed: list[str] = []

    def close_file(path: Path, fd: int) -> None:
        closed.append(path.name)
        if path.name == "b":
            raise ResourceError("no")

    held = Descriptors(lambda path: 1, close_file, most_open=9)
    for name in "abc":
        with held.use(Path(name)):
            pass
    with pytest.raises(ResourceError, match="no"):
        held.close()
    assert sorted(closed) == ["a", "b", "c"]


def test_an_output_of_many_shards_is_written_through_few_descriptors(few: int, tmp_path: Path) -> None:
    layout = plan_shards([(f"t{i}", DType.F32, (2,)) for i in range(400)], shard_bytes=8, metadata={})
    assert len(layout.shards) == 400
    with ShardWriter(tmp_path, layout) as writer:
        for start in (0, 1):
            for number, place in enumerate(layout.targets.values()):
                writer.write(memoryview(torch.tensor([float(number + start)]).numpy()).cast("B"), place, start)
        writer.sync()
    for number, place in enumerate(layout.targets.values()):
        (found,) = safetensors.torch.load_file(tmp_path / place.file).values()
        assert found.tolist() == [number, number + 1]


def test_a_shard_that_is_removed_while_it_is_written_is_not_made_anew(few: int, tmp_path: Path) -> None:
    layout = plan_shards([(f"t{i}", DType.F32, (2,)) for i in range(100)], shard_bytes=8, metadata={})
    with ShardWriter(tmp_path, layout) as writer:
        (tmp_path / layout.shards[0].file).unlink()
        with pytest.raises(ResourceError, match="was changed or removed while it was written"):
            writer.write(memoryview(bytes(4)), layout.targets["t0"], 0)
