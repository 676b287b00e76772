import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from merge_cli.checkpoint import Checkpoint, Files, Reader, open_checkpoint
from merge_cli.errors import CheckpointError
from tests.checkpoint.helpers import EIO, Failing, Trickle, filled, raw_bytes, read_all, read_into


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"a": filled(torch.bfloat16, (40, 3)), "b": filled(torch.float64, (9,)), "c": filled(torch.bool, (5,))}


@pytest.fixture
def saved(state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("most", [1, 5, 64])
def test_short_reads_change_nothing(most: int, state: dict[str, torch.Tensor], saved: Path) -> None:
    files = Trickle(most)
    assert read_all(open_checkpoint(saved), files) == {name: raw_bytes(tensor) for name, tensor in state.items()}
    assert files.calls >= 240 // most


@pytest.mark.parametrize(("start", "count"), [(0, 120), (0, 1), (119, 1), (17, 40), (120, 0)])
def test_any_range_of_elements_can_be_read(start: int, count: int, state: dict[str, torch.Tensor], saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    buffer = bytearray(2 * count)
    with Reader(checkpoint.files) as reader:
        read_into(reader, memoryview(buffer), checkpoint.tensors["a"], start)
    assert bytes(buffer) == raw_bytes(state["a"].flatten()[start : start + count])


def test_a_buffer_of_torch_is_filled_in_place(state: dict[str, torch.Tensor], saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    target = torch.zeros(9, dtype=torch.float64)
    with Reader(checkpoint.files) as reader:
        read_into(reader, memoryview(target.numpy()).cast("B"), checkpoint.tensors["b"], 0)
    assert raw_bytes(target) == raw_bytes(state["b"])


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def touch(path: Path) -> None:
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def rewrite(path: Path) -> None:
    safetensors.torch.save_file({"z": torch.zeros(3)}, path)


@pytest.mark.parametrize("change", [grow, touch, rewrite])
def test_a_file_that_has_changed_since_the_plan_is_refused(change: object, saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    assert callable(change)
    change(saved)
    files = Failing(0, [])
    with Reader(checkpoint.files, files) as reader:
        with pytest.raises(CheckpointError, match=rf"^{saved} has changed since the merge was planned\n  hint: start"):
            read_into(reader, memoryview(bytearray(2)), checkpoint.tensors["a"], 0)
        assert files.held == []


def test_a_file_that_has_gone_since_the_plan_is_an_error(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    saved.unlink()
    with Reader(checkpoint.files) as reader, pytest.raises(CheckpointError, match=r"No such file or directory$"):
        read_into(reader, memoryview(bytearray(2)), checkpoint.tensors["a"], 0)


def test_a_file_truncated_while_it_is_read_is_an_error_and_no_crash(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    with Reader(checkpoint.files) as reader:
        read_into(reader, memoryview(bytearray(2)), checkpoint.tensors["a"], 0)
        os.truncate(saved, checkpoint.tensors["a"].offset + 10)
        with pytest.raises(CheckpointError, match=rf"^{saved} ends at byte \d+, expected 230 bytes more\n  hint: "):
            read_into(reader, memoryview(bytearray(240)), checkpoint.tensors["a"], 0)


@pytest.mark.parametrize("call", ["open_read", "stat", "pread"])
def test_a_failing_disk_is_an_error_that_names_the_file(call: str, saved: Path) -> None:
    checkpoint, files = open_checkpoint(saved), Failing(EIO, [call])
    with Reader(checkpoint.files, files) as reader:
        for _ in range(3):
            with pytest.raises(CheckpointError, match=rf"^cannot read {saved}: Input/output error$"):
                read_into(reader, memoryview(bytearray(2)), checkpoint.tensors["a"], 0)
    assert files.held == []


def many_files(folder: Path, count: int) -> list[Checkpoint]:
    for number in range(count):
        safetensors.torch.save_file({"t": torch.full((64,), float(number))}, folder / f"{number}.safetensors")
    return [open_checkpoint(folder / f"{number}.safetensors") for number in range(count)]


class Watched(Failing):
    """Counts how many descriptors are open at most, and how many files were opened."""

    def __init__(self) -> None:
        super().__init__(0, [])
        self.lock = threading.Lock()
        self.most = 0
        self.opened = 0

    def open_read(self, path: Path) -> int:
        with self.lock:
            fd = super().open_read(path)
            self.opened += 1
            self.most = max(self.most, len(self.held))
            return fd

    def close(self, fd: int) -> None:
        with self.lock:
            super().close(fd)


def first_number(reader: Reader, checkpoint: Checkpoint) -> float:
    values = torch.empty(64)
    read_into(reader, memoryview(values.numpy()).cast("B"), checkpoint.tensors["t"], 0)
    assert values.min() == values.max()
    return float(values[0])


def test_no_more_descriptors_are_open_than_allowed(tmp_path: Path) -> None:
    checkpoints, files = many_files(tmp_path, 20), Watched()
    identities = [identity for checkpoint in checkpoints for identity in checkpoint.files]
    with Reader(identities, files, most_open=4) as reader:
        for _ in range(2):
            assert [first_number(reader, checkpoint) for checkpoint in checkpoints] == list(range(20))
    assert files.most == 4
    assert files.opened == 40
    assert files.held == []


def test_a_file_in_use_stays_open_and_the_one_used_longest_ago_is_closed(tmp_path: Path) -> None:
    checkpoints, files = many_files(tmp_path, 4), Watched()
    identities = [identity for checkpoint in checkpoints for identity in checkpoint.files]
    with Reader(identities, files, most_open=3) as reader:
        for number in (0, 1, 2, 0, 3, 0, 2, 3):
            assert first_number(reader, checkpoints[number]) == number
    assert files.opened == 4


def test_many_threads_read_many_files_through_few_descriptors(tmp_path: Path) -> None:
    checkpoints, files = many_files(tmp_path, 30), Watched()
    identities = [identity for checkpoint in checkpoints for identity in checkpoint.files]
    order = [(7 * step) % 30 for step in range(600)]
    with Reader(identities, files, most_open=5) as reader, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: first_number(reader, checkpoints[number]), order))
    assert found == order
    assert files.most <= 8
    assert files.held == []


def test_threads_read_parts_of_one_file_at_once(tmp_path: Path) -> None:
    values = torch.arange(10_000, dtype=torch.int32)
    safetensors.torch.save_file({"t": values}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    found = torch.zeros_like(values)
    target = memoryview(found.numpy()).cast("B")

    def read(start: int) -> None:
        read_into(reader, target[4 * start : 4 * (start + 100)], checkpoint.tensors["t"], start)

    with Reader(checkpoint.files, Trickle(33)) as reader, ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(0, 10_000, 100)))
    assert torch.equal(found, values)


def test_the_files_are_closed_when_the_work_fails(saved: Path) -> None:
    checkpoint, files = open_checkpoint(saved), Watched()

    def work() -> None:
        with Reader(checkpoint.files, files) as reader:
            read_into(reader, memoryview(bytearray(2)), checkpoint.tensors["a"], 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert (files.opened, files.held) == (1, [])


def test_the_system_calls_are_the_plain_ones_unless_others_are_given(saved: Path) -> None:
    checkpoint = open_checkpoint(saved, files=Files())
    assert read_all(checkpoint) == read_all(checkpoint, Files())
