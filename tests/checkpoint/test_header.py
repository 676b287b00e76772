import hashlib
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from merge_cli.checkpoint import Files, open_checkpoint
from merge_cli.checkpoint.header import encode_header, read_header
from tests.checkpoint.helpers import TORCH_DTYPES, assert_holds, entry, filled, write_raw

SHAPES = {"scalar": (), "one": (1,), "vector": (7,), "matrix": (3, 5), "cube": (2, 3, 4), "empty": (0,), "thin": (3, 0)}


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_what_the_safetensors_library_saved_is_read_back_bit_by_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: filled(dtype, shape, seed=number) for number, (name, shape) in enumerate(SHAPES.items())}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    assert_holds(open_checkpoint(path), state)


def test_tensors_of_all_dtypes_stand_in_one_file(tmp_path: Path) -> None:
    state = {name: filled(dtype, (3, 5)) for name, dtype in TORCH_DTYPES.items()}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path, metadata={"format": "pt", "größe": "π"})
    checkpoint = open_checkpoint(path)
    assert_holds(checkpoint, state)
    assert checkpoint.metadata == {"format": "pt", "größe": "π"}
    assert checkpoint.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = {"late": entry(offsets=[8, 12]), "early": entry(offsets=[0, 4]), "middle": entry(offsets=[4, 8])}
    read = read_header(write_raw(tmp_path / "x.safetensors", header, bytes(12)), Files())
    assert list(read.tensors) == ["early", "middle", "late"]
    start = read.tensors["early"].offset
    assert [tensor.offset - start for tensor in read.tensors.values()] == [0, 4, 8]


def test_offsets_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    tensor = read_header(write_raw(tmp_path / "x.safetensors", header, b"hi"), Files()).tensors["a"]
    assert (tensor.offset, tensor.numel, tensor.nbytes) == (8 + 53, 2, 2)
    assert (tmp_path / "x.safetensors").read_bytes()[tensor.offset :] == b"hi"


def test_a_scalar_has_one_element_and_an_empty_tensor_none(tmp_path: Path) -> None:
    header = {"scalar": entry("F64", [], [0, 8]), "empty": entry("F64", [4, 0, 2], [8, 8])}
    tensors = read_header(write_raw(tmp_path / "x.safetensors", header, bytes(8)), Files()).tensors
    assert [(tensor.numel, tensor.nbytes) for tensor in tensors.values()] == [(1, 8), (0, 0)]


def test_a_file_without_tensors_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({}, path)
    assert dict(open_checkpoint(path).tensors) == {}


def test_the_identity_of_a_file_is_its_size_its_time_and_the_hash_of_its_header(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"hi")
    identity = read_header(path, Files()).identity
    assert (identity.path, identity.size, identity.mtime_ns) == (path, 8 + 53 + 2, path.stat().st_mtime_ns)
    assert identity.sha256 == hashlib.sha256(path.read_bytes()[8:61]).hexdigest()
    stat = path.stat()
    assert identity.place == (stat.st_dev, stat.st_ino, stat.st_ctime_ns)


@pytest.mark.parametrize("blanks", range(9))
def test_an_encoded_header_is_padded_to_eight_bytes_and_read_by_the_library(blanks: int, tmp_path: Path) -> None:
    name = "ü" + "x" * blanks
    encoded = encode_header({name: entry("U8", [2], [0, 2])})
    assert len(encoded) % 8 == 0
    assert int.from_bytes(encoded[:8], "little") == len(encoded) - 8
    path = tmp_path / "x.safetensors"
    path.write_bytes(encoded + b"hi")
    with safetensors.safe_open(path, framework="pt") as file:
        assert list(file.keys()) == [name]
        assert file.get_tensor(name).tolist() == [104, 105]
