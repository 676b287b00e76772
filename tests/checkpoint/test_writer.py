import errno
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from merge_cli.checkpoint import DType, Files, Layout, ShardWriter, plan_shards
from merge_cli.errors import ResourceError
from tests.checkpoint.helpers import EIO, ENOSPC, Failing, Trickle, filled, raw_bytes

STATE = {
    "a": filled(torch.bfloat16, (50, 7), seed=1),
    "b": filled(torch.float64, (33,), seed=2),
    "flag": filled(torch.bool, (13,), seed=3),
    "c": filled(torch.float32, (20, 5), seed=4),
    "empty": torch.zeros(0, 3),
}
DTYPES = {torch.bfloat16: DType.BF16, torch.float64: DType.F64, torch.bool: DType.BOOL, torch.float32: DType.F32}


def laid_out(shard_bytes: int = 10**9) -> Layout:
    described = [(name, DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in STATE.items()]
    return plan_shards(described, shard_bytes=shard_bytes, metadata={})


def blocks(layout: Layout, numel: int) -> list[tuple[str, int, bytes]]:
    """Every tensor cut into blocks of ``numel`` elements: name, first element, bytes."""
    found = []
    for name, place in layout.targets.items():
        data, width = raw_bytes(STATE[name]), place.dtype.itemsize
        for start in range(0, place.numel, numel):
            found.append((name, start, data[start * width : (start + numel) * width]))
    return found


def write_all(writer: ShardWriter, layout: Layout) -> None:
    for name, start, data in blocks(layout, 17):
        writer.write(memoryview(data), layout.targets[name], start)


def assert_written(folder: Path, layout: Layout) -> None:
    found = {}
    for shard in layout.shards:
        assert (folder / shard.file).stat().st_size == shard.size
        found |= safetensors.torch.load_file(folder / shard.file)
    assert found.keys() == STATE.keys()
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (STATE[name].dtype, STATE[name].shape)
        assert raw_bytes(tensor) == raw_bytes(STATE[name])


@pytest.mark.parametrize("shard_bytes", [10**9, 500], ids=["one file", "sharded"])
def test_blocks_may_be_written_in_any_order_and_from_many_threads(shard_bytes: int, tmp_path: Path) -> None:
    layout = laid_out(shard_bytes)
    work = blocks(layout, 3)
    random.Random(0).shuffle(work)
    with ShardWriter(tmp_path, layout) as writer, ThreadPoolExecutor(8) as pool:

        def write(block: tuple[str, int, bytes]) -> None:
            name, start, data = block
            writer.write(memoryview(data), layout.targets[name], start)

        list(pool.map(write, work))
        writer.sync()
    assert_written(tmp_path, layout)


@pytest.mark.parametrize("most", [1, 6, 100])
def test_short_writes_change_nothing(most: int, tmp_path: Path) -> None:
    layout = laid_out(500)
    with ShardWriter(tmp_path, layout, Trickle(most)) as writer:
        write_all(writer, layout)
    assert_written(tmp_path, layout)


def test_the_space_is_taken_and_the_headers_stand_before_any_tensor_is_written(tmp_path: Path) -> None:
    layout = laid_out(500)
    ShardWriter(tmp_path, layout).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [shard.file for shard in layout.shards]
    for shard in layout.shards:
        path = tmp_path / shard.file
        assert path.stat().st_size == shard.size
        assert path.stat().st_blocks * 512 >= shard.size
        with safetensors.safe_open(path, framework="pt") as file:
            assert sorted(file.keys()) == sorted(tensor.name for tensor in shard.tensors)


def test_what_an_earlier_file_had_beyond_the_end_is_cut_off(tmp_path: Path) -> None:
    layout = laid_out()
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * (layout.nbytes + 1000))
    with ShardWriter(tmp_path, layout) as writer:
        write_all(writer, layout)
    assert_written(tmp_path, layout)


def test_a_disk_that_cannot_hold_the_output_is_an_error_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(folder: Path) -> Any:
        return shutil._ntuple_diskusage(10**9, 10**9 - 1500, 1500)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    layout = plan_shards([("a", DType.F32, (500_000,))], shard_bytes=10**9, metadata={})
    with pytest.raises(ResourceError) as caught:
        ShardWriter(tmp_path, layout)
    assert caught.value.message == f"{tmp_path} has 1.5 kB free, the output takes 2.0 MB"
    assert caught.value.hint == "free some disk space, write elsewhere, or choose a smaller out_dtype"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_turns_out_full_while_reserving_is_an_error_with_a_hint(number: int, tmp_path: Path) -> None:
    files = Failing(number, ["reserve"])
    with pytest.raises(ResourceError) as caught:
        ShardWriter(tmp_path, laid_out(), files)
    assert caught.value.message.startswith(f"cannot write {tmp_path / 'model.safetensors'}: ")
    assert caught.value.hint == "free some disk space or write elsewhere"
    assert caught.value.exit_code == 4
    assert files.held == []


def test_a_later_shard_may_be_the_one_that_does_not_fit(tmp_path: Path) -> None:
    class SmallDisk(Failing):
        left = laid_out(500).shards[0].size

        def reserve(self, fd: int, size: int) -> None:
            self.left -= size
            if self.left < 0:
                raise self.error
            super().reserve(fd, size)

    files = SmallDisk(ENOSPC, [])
    with pytest.raises(ResourceError, match=r"model-0000[23]-of-00003.safetensors: No space left on device"):
        ShardWriter(tmp_path, laid_out(500), files)
    assert files.held == []


@pytest.mark.parametrize("call", ["open_write", "stat", "pwrite"])
def test_a_failing_disk_is_an_error_from_the_start(call: str, tmp_path: Path) -> None:
    files = Failing(EIO, [call])
    with pytest.raises(ResourceError, match=rf"^cannot write {tmp_path}/model.safetensors: Input/output error$"):
        ShardWriter(tmp_path, laid_out(), files)
    assert files.held == []


def test_a_disk_that_fails_later_is_an_error_that_names_the_file_and_closes_all(tmp_path: Path) -> None:
    files, layout = Failing(EIO, []), laid_out(500)

    def work() -> None:
        with ShardWriter(tmp_path, layout, files) as writer:
            files.calls.append("pwrite")
            write_all(writer, layout)

    with pytest.raises(ResourceError, match=rf"^cannot write {tmp_path}/model-0000\d-of-0000\d.safetensors: Input/out"):
        work()
    assert files.held == []


def test_what_the_device_cannot_keep_is_an_error_when_syncing(tmp_path: Path) -> None:
    files = Failing(EIO, ["sync"])
    with (
        ShardWriter(tmp_path, laid_out(), files) as writer,
        pytest.raises(ResourceError, match=rf"^cannot write {tmp_path}/model.safetensors: Input/output error$"),
    ):
        writer.sync()
    assert files.held == []


def test_what_the_system_reports_on_closing_is_an_error_after_all_are_closed(tmp_path: Path) -> None:
    files = Failing(EIO, ["close"])
    writer = ShardWriter(tmp_path, laid_out(500), files)
    assert len(files.held) > 1
    with pytest.raises(ResourceError, match=rf"^cannot write {tmp_path}/model-0000\d-of-0000\d.safetensors: Input/out"):
        writer.close()
    assert files.held == []
    writer.close()


def test_an_error_of_the_work_is_not_hidden_by_one_on_closing(tmp_path: Path) -> None:
    files = Failing(EIO, ["close"])
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path, laid_out(), files):
        raise ZeroDivisionError
    assert files.held == []


def test_more_files_than_the_system_lets_open_are_an_error(tmp_path: Path) -> None:
    class FewDescriptors(Failing):
        def open_write(self, path: Path) -> int:
            if len(self.held) == 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().open_write(path)

    files = FewDescriptors(0, [])
    with pytest.raises(ResourceError, match="Too many open files"):
        ShardWriter(tmp_path, laid_out(500), files)
    assert files.held == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=rf"^cannot write {re.escape(str(tmp_path / 'no'))}: No such file"):
        ShardWriter(tmp_path / "no", laid_out())


def test_the_system_calls_are_the_plain_ones_unless_others_are_given(tmp_path: Path) -> None:
    layout = laid_out()
    for files in (None, Files()):
        with ShardWriter(tmp_path, layout, files) as writer:
            write_all(writer, layout)
        assert_written(tmp_path, layout)
