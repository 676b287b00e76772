"""The sample of a file tells models apart that a header cannot, and costs the same for any file."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.torch_bin import read_any_header


class Counting(Files):
    """Counts what is read."""

    def __init__(self) -> None:
        self.reads, self.bytes = 0, 0

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        count = super().pread(fd, view, offset)
        self.reads, self.bytes = self.reads + 1, self.bytes + count
        return count


def sample(path: Path) -> str:
    return read_any_header(path, Files())[0].identity.sample


def damaged(path: Path, offset: int) -> Path:
    """Return a copy in which one bit is another, with the same times."""
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    copy = path.with_name(f"damaged-{offset}{path.suffix}")
    copy.write_bytes(raw)
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    return copy


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_change_of_a_small_tensor_and_at_either_end_and_in_the_middle_of_a_large_one_is_seen(
    tmp_path: Path, suffix: str
) -> None:
    state = {"large": torch.zeros(100_000), "norm": torch.zeros(3), "scalar": torch.zeros(())}
    path = tmp_path / f"model.{suffix}"
    if suffix == "bin":
        torch.save(state, path)
    else:
        save_file(state, path)
    tensors = read_any_header(path, Files())[0].tensors
    before = sample(path)
    large = tensors["large"].offset
    places = [large, large + 200_000, large + 399_999, *(tensors[name].offset for name in ("norm", "scalar"))]
    assert all(sample(damaged(path, place)) != before for place in places)
    # Sampled is not read: somewhere between a change is not seen.
    assert sample(damaged(path, large + 100_000)) == before


def test_where_there_are_many_tensors_they_are_sampled_evenly_at_many_places(tmp_path: Path) -> None:
    names = [f"t{i:04d}" for i in range(640)]
    save_file({name: torch.zeros(5000) for name in names}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    tensors = list(read_any_header(path, Files())[0].tensors.values())
    before, seen = sample(path), []
    raw = bytearray(path.read_bytes())
    for number, tensor in enumerate(tensors):
        content = bytearray(raw)
        content[tensor.offset : tensor.offset + tensor.nbytes] = b"\x01" * tensor.nbytes
        path.write_bytes(content)
        if sample(path) != before:
            seen.append(number)
    assert len(seen) == 64
    assert (seen[0], seen[-1]) == (0, 639)
    assert max(b - a for a, b in pairwise(seen)) <= 11


@pytest.mark.parametrize("count", [1, 20, 21, 22, 32, 33, 64, 65, 2000])
def test_as_much_is_read_at_most_whatever_a_file_holds(tmp_path: Path, count: int) -> None:
    save_file({f"t{i}": torch.zeros(3000) for i in range(count)}, tmp_path / "model.safetensors")
    files = Counting()
    header, _ = read_any_header(tmp_path / "model.safetensors", files)
    # Two reads are of the header.
    assert min(count, 64) <= files.reads - 2 <= 64
    first = min(tensor.offset for tensor in header.tensors.values())
    assert files.bytes - first <= 64 * 4096


def test_a_file_without_numbers_has_a_sample_too(tmp_path: Path) -> None:
    save_file({"none": torch.zeros(0, 3)}, tmp_path / "model.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    assert sample(tmp_path / "model.safetensors") == sample(tmp_path / "empty.safetensors")
