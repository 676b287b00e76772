import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_cli.checkpoint import Checkpoint, DType, Layout, ShardWriter, open_checkpoint, plan_shards
from tests.checkpoint.helpers import TORCH_DTYPES, assert_holds, filled, raw_bytes

NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def laid_out(state: dict[str, torch.Tensor], *, shard_bytes: int = 10**9) -> Layout:
    tensors = [(name, DType(NAMES[tensor.dtype]), tuple(tensor.shape)) for name, tensor in state.items()]
    return plan_shards(tensors, shard_bytes=shard_bytes, metadata={"format": "pt"})


def write(folder: Path, state: dict[str, torch.Tensor], *, shard_bytes: int = 10**9) -> Layout:
    layout = laid_out(state, shard_bytes=shard_bytes)
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, layout) as writer:
        for name, place in layout.targets.items():
            writer.write(memoryview(raw_bytes(state[name])), place, 0)
    index = layout.index()
    if index is not None:
        (folder / "model.safetensors.index.json").write_bytes(index)
    return layout


MIXED = {
    f"{name}.{number}": filled(dtype, shape, seed=number)
    for name, dtype in TORCH_DTYPES.items()
    for number, shape in enumerate([(), (3,), (2, 5), (0,), (0, 7)])
}


def test_what_is_laid_out_and_written_is_what_the_safetensors_library_loads(tmp_path: Path) -> None:
    layout = write(tmp_path / "out", MIXED)
    path = tmp_path / "out" / "model.safetensors"
    assert path.stat().st_size == layout.nbytes
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == MIXED.keys()
    for name, tensor in loaded.items():
        assert (tensor.dtype, tensor.shape) == (MIXED[name].dtype, MIXED[name].shape)
        assert raw_bytes(tensor) == raw_bytes(MIXED[name])
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert_holds(open_checkpoint(tmp_path / "out"), MIXED)


def test_every_tensor_starts_at_a_multiple_of_its_item_size() -> None:
    odd = {"bool": filled(torch.bool, (3,)), "double": filled(torch.float64, (1,)), "half": filled(torch.half, (5,))}
    places = laid_out(odd | MIXED).targets
    assert places.keys() == (odd | MIXED).keys()
    assert [name for name, place in places.items() if place.offset % place.dtype.itemsize] == []


def test_within_a_dtype_the_given_order_is_kept() -> None:
    names = ["z", "a", "m"]
    layout = laid_out({name: torch.zeros(2) for name in names})
    assert [tensor.name for tensor in layout.shards[0].tensors] == names


def test_tensors_are_distributed_in_order_until_a_shard_is_full() -> None:
    state = {name: torch.zeros(count) for name, count in {"a": 10, "b": 10, "c": 15, "d": 5, "e": 1}.items()}
    layout = laid_out(state, shard_bytes=80)
    assert [(shard.file, [tensor.name for tensor in shard.tensors]) for shard in layout.shards] == [
        ("model-00001-of-00003.safetensors", ["a", "b"]),
        ("model-00002-of-00003.safetensors", ["c", "d"]),
        ("model-00003-of-00003.safetensors", ["e"]),
    ]
    assert [str(layout.targets[name].file) for name in "ace"] == [shard.file for shard in layout.shards]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=25), shard_bytes=st.integers(4, 200))
def test_the_shards_are_those_that_the_hub_library_makes(sizes: list[int], shard_bytes: int) -> None:
    # Filled with storage of their own: the library takes empty tensors that share address 0 for tied ones.
    state = {f"t{number}": torch.zeros(size) for number, size in enumerate(sizes) if size}
    if not state:
        return
    theirs = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    layout = laid_out(state, shard_bytes=shard_bytes)
    assert {shard.file: sorted(tensor.name for tensor in shard.tensors) for shard in layout.shards} == {
        file: sorted(names) for file, names in theirs.filename_to_tensors.items()
    }
    index = layout.index()
    if theirs.is_sharded:
        assert index is not None
        content = json.loads(index)
        assert content["weight_map"] == theirs.tensor_to_filename
        assert content["metadata"]["total_size"] == theirs.metadata["total_size"]
        assert content["metadata"]["total_parameters"] == sum(sizes)
    else:
        assert index is None


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.lists(
        st.tuples(st.sampled_from(list(DType)), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=20
    ),
    shard_bytes=st.integers(1, 300),
)
def test_any_layout_has_every_tensor_once_without_gap_and_no_shard_larger_than_it_must_be(
    tensors: list[tuple[DType, list[int]]], shard_bytes: int
) -> None:
    named = [(f"t{number}", dtype, tuple(shape)) for number, (dtype, shape) in enumerate(tensors)]
    layout = plan_shards(named, shard_bytes=shard_bytes, metadata={})
    assert sorted(layout.targets) == sorted(name for name, _, _ in named)
    for name, dtype, shape in named:
        assert (layout.targets[name].dtype, layout.targets[name].shape) == (dtype, shape)
        assert layout.targets[name].nbytes == math.prod(shape) * TORCH_DTYPES[dtype.value].itemsize
    for shard in layout.shards:
        position = len(shard.header)
        for tensor in shard.tensors:
            assert tensor.offset == position
            assert tensor.offset % tensor.dtype.itemsize == 0
            position += tensor.nbytes
        assert position == shard.size
        assert shard.size - len(shard.header) <= shard_bytes or len(shard.tensors) == 1
    assert layout.nbytes == sum(shard.size for shard in layout.shards)


def test_a_tensor_larger_than_a_shard_gets_its_own_and_the_others_are_filled_on() -> None:
    state = {"a": torch.zeros(5), "large": torch.zeros(100), "b": torch.zeros(5)}
    shards = [sorted(tensor.name for tensor in shard.tensors) for shard in laid_out(state, shard_bytes=80).shards]
    assert sorted(shards) == [["a", "b"], ["large"]]


def test_no_tensors_at_all_are_one_file_that_the_library_loads(tmp_path: Path) -> None:
    write(tmp_path / "out", {})
    assert safetensors.torch.load_file(tmp_path / "out" / "model.safetensors") == {}


def test_names_of_any_script_survive(tmp_path: Path) -> None:
    state = {'schicht.größe."π"\\': torch.arange(3.0), "層.0": torch.arange(2.0), "": torch.arange(1.0)}
    write(tmp_path / "out", state, shard_bytes=8)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert len(checkpoint.files) == 3
    assert_holds(checkpoint, state)
    for identity in checkpoint.files:
        for name, tensor in safetensors.torch.load_file(identity.path).items():
            assert torch.equal(tensor, state[name])


def test_a_sharded_output_is_opened_through_its_index(tmp_path: Path) -> None:
    layout = write(tmp_path / "out", MIXED, shard_bytes=64)
    checkpoint: Checkpoint = open_checkpoint(tmp_path / "out", label="merged")
    assert [identity.path.name for identity in checkpoint.files] == [shard.file for shard in layout.shards]
    assert len(checkpoint.files) > 3
    assert checkpoint.label == "merged"
    assert_holds(checkpoint, MIXED)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt", "a": "b"}])
def test_metadata_stands_in_every_shard(metadata: dict[str, str], tmp_path: Path) -> None:
    layout = plan_shards([("a", DType.U8, (2,)), ("b", DType.U8, (2,))], shard_bytes=2, metadata=metadata)
    ShardWriter(tmp_path, layout).close()
    for shard in layout.shards:
        with safetensors.safe_open(tmp_path / shard.file, framework="pt") as file:
            assert (file.metadata() or {}) == metadata
