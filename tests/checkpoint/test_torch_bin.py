import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_cli.checkpoint import Checkpoint, DType, Reader, open_checkpoint
from merge_cli.errors import CheckpointError
from tests.checkpoint.helpers import TORCH_DTYPES, Trickle, assert_holds, filled, raw_bytes, read_all, read_into


def saved(state: Any, folder: Path, *, legacy: bool = False) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def rebuilt(
    path: Path,
    *,
    replace: Mapping[str, bytes] | None = None,
    first: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write an archive of torch again: with members replaced, with others in front, or compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {**(first or {}), **members, **(replace or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_what_torch_saved_is_read_back_bit_by_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = [(), (7,), (3, 5), (2, 3, 4), (1, 1)]
    state = {f"t{number}": filled(dtype, shape, seed=number) for number, shape in enumerate(shapes)}
    assert_holds(open_checkpoint(saved(state, tmp_path)), state)


def test_tensors_of_all_dtypes_and_empty_ones_stand_in_one_file(tmp_path: Path) -> None:
    state = {name: filled(dtype, (3, 5)) for name, dtype in TORCH_DTYPES.items()}
    state |= {"empty": torch.zeros(0, 4), "thin": torch.zeros(3, 0, dtype=torch.bfloat16)}
    assert_holds(open_checkpoint(saved(state, tmp_path)), state)


def test_a_state_dict_of_a_module_is_read_with_its_parameters(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    assert_holds(open_checkpoint(saved(module.state_dict(), tmp_path)), module.state_dict())
    parameters = {"p": torch.nn.Parameter(torch.arange(3.0))}
    assert_holds(open_checkpoint(saved(parameters, tmp_path)), {"p": torch.arange(3.0)})


def test_tied_tensors_are_found_once_with_their_further_names(tmp_path: Path) -> None:
    shared, other = torch.arange(12.0).view(3, 4), torch.ones(12).view(3, 4)
    state = {"embed": shared, "other": other, "head": shared, "decoder": shared[:]}
    checkpoint = open_checkpoint(saved(state, tmp_path))
    assert_holds(checkpoint, {"embed": shared, "other": other})
    assert checkpoint.tied == {"head": "embed", "decoder": "embed"}
    assert checkpoint.find("head") == checkpoint.tensors["embed"]
    assert checkpoint.find("embed") == checkpoint.tensors["embed"]
    assert checkpoint.find("nothing") is None


def test_equal_tensors_that_share_no_bytes_are_not_tied(tmp_path: Path) -> None:
    state = {"a": torch.ones(4), "b": torch.ones(4), "e": torch.zeros(0), "f": torch.zeros(0)}
    checkpoint = open_checkpoint(saved(state, tmp_path))
    assert checkpoint.tied == {}
    assert_holds(checkpoint, state)


def test_views_of_one_storage_are_read_from_their_places(tmp_path: Path) -> None:
    storage = torch.arange(24, dtype=torch.bfloat16)
    state = {"all": storage, "front": storage[:8], "back": storage[8:].view(4, 4), "as rows": storage.view(6, 4)}
    checkpoint = open_checkpoint(saved(state, tmp_path))
    assert_holds(checkpoint, state)
    assert checkpoint.tied == {}
    assert checkpoint.tensors["back"].offset - checkpoint.tensors["all"].offset == 8 * 2
    assert checkpoint.tensors["as rows"].offset == checkpoint.tensors["all"].offset


def test_a_slice_of_a_storage_that_is_not_saved_under_a_name_is_found(tmp_path: Path) -> None:
    assert_holds(
        open_checkpoint(saved({"middle": torch.arange(100.0)[40:60]}, tmp_path)), {"middle": torch.arange(40.0, 60.0)}
    )


def test_sizes_of_one_do_not_make_a_tensor_strided(tmp_path: Path) -> None:
    state = {"t": torch.arange(5.0).view(5, 1).t()}
    assert_holds(open_checkpoint(saved(state, tmp_path)), state)


def test_short_reads_change_nothing(tmp_path: Path) -> None:
    state = {"a": filled(torch.bfloat16, (40, 3)), "b": filled(torch.float32, (9,))}
    path = saved(state, tmp_path)
    expected = {name: raw_bytes(tensor) for name, tensor in state.items()}
    assert read_all(open_checkpoint(path, files=Trickle(3)), Trickle(3)) == expected


def test_a_file_without_tensors_is_sound(tmp_path: Path) -> None:
    assert dict(open_checkpoint(saved({}, tmp_path)).tensors) == {}


def test_the_same_file_has_the_same_identity_and_another_pickle_has_another(tmp_path: Path) -> None:
    first = open_checkpoint(saved({"a": torch.ones(2)}, tmp_path)).files[0]
    assert open_checkpoint(tmp_path / "pytorch_model.bin").files[0] == first
    assert first.size == (tmp_path / "pytorch_model.bin").stat().st_size
    assert open_checkpoint(saved({"b": torch.ones(2)}, tmp_path)).files[0].sha256 != first.sha256


@pytest.mark.parametrize("name", ["a.pt", "b.pth", "consolidated.00.pth", "data.bin"])
def test_the_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0)}
    torch.save(state, tmp_path / name)
    assert_holds(open_checkpoint(tmp_path / name), state)


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    """Two files and an index as transformers wrote them before safetensors; ``head`` is tied to ``embed``."""
    embed = filled(torch.bfloat16, (6, 4))
    first, second = {"embed": embed, "head": embed}, {"norm": filled(torch.float32, (4,), seed=1)}
    torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
    torch.save(second, folder / "pytorch_model-00002-of-00002.bin")
    places = dict.fromkeys(first, "pytorch_model-00001-of-00002.bin")
    places |= dict.fromkeys(second, "pytorch_model-00002-of-00002.bin")
    write_index(folder, places)
    return {"embed": embed, **second}


def write_index(folder: Path, places: Mapping[str, str]) -> None:
    content = {"metadata": {"total_size": 64}, "weight_map": dict(places)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))


def test_sharded_files_are_opened_through_their_index(tmp_path: Path) -> None:
    expected = sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, expected)
    assert checkpoint.tied == {"head": "embed"}
    assert len(checkpoint.files) == 2


def test_a_name_that_is_tied_in_one_file_and_stands_in_another_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    torch.save({"norm": torch.ones(4), "head": torch.zeros(6, 4)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"head stand in more than one file$"):
        open_checkpoint(tmp_path)


def test_a_name_that_is_tied_in_two_files_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    norm = torch.ones(4)
    torch.save({"norm": norm, "head": norm}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"head stand in more than one file$"):
        open_checkpoint(tmp_path)


def overlapping() -> torch.Tensor:
    return torch.arange(6.0).as_strided((3, 2), (1, 1))


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        pytest.param(torch.arange(6.0).view(2, 3).t(), "transposed", id="transposed"),
        pytest.param(torch.arange(6.0)[::2], "strided", id="every second"),
        pytest.param(torch.ones(1).expand(4), "strided", id="expanded"),
        pytest.param(overlapping(), "strided", id="overlapping rows"),
        pytest.param(torch.zeros(3, dtype=torch.complex64), "dtype torch.complex64", id="complex"),
        pytest.param(torch._neg_view(torch.ones(3)), "sign", id="negated on reading"),
        pytest.param(torch.eye(3).to_sparse(), "layout torch.sparse_coo", id="sparse"),
        pytest.param(torch.zeros(3, device="meta"), "device meta", id="without bytes"),
    ],
)
def test_a_tensor_whose_bytes_are_not_its_elements_in_order_is_refused(
    tensor: torch.Tensor, why: str, tmp_path: Path
) -> None:
    error = refusal(saved({"good": torch.ones(2), "bad": tensor}, tmp_path))
    assert "tensor 'bad' has" in error.message
    assert why in error.message
    assert error.hint is not None
    assert "save_pretrained" in error.hint


@pytest.mark.parametrize(
    "state",
    [
        pytest.param([torch.ones(2)], id="list"),
        pytest.param(torch.ones(2), id="bare tensor"),
        pytest.param({"state_dict": {"a": torch.ones(2)}}, id="nested"),
        pytest.param({"a": torch.ones(2), "epoch": 3}, id="number"),
        pytest.param({0: torch.ones(2)}, id="numbered"),
        pytest.param(None, id="null"),
    ],
)
def test_what_is_no_mapping_of_names_to_tensors_is_refused(state: Any, tmp_path: Path) -> None:
    assert "is not a state dict" in refusal(saved(state, tmp_path)).message


@pytest.mark.parametrize("name", ["__metadata__", "half \ud800 a pair"])
def test_a_name_that_no_safetensors_file_could_hold_is_refused(name: str, tmp_path: Path) -> None:
    assert "cannot be the name of a tensor" in refusal(saved({name: torch.ones(2)}, tmp_path)).message


class RunsACommand:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


class CallsEval:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, (f"__import__('os').mkdir({str(self.marker)!r})",)


@pytest.mark.parametrize("payload", [RunsACommand, CallsEval])
@pytest.mark.parametrize("place", ["value", "beside", "key"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    payload: Callable[[Path], Any], place: str, tmp_path: Path
) -> None:
    marker = tmp_path / "was-here"
    hostile = payload(marker)
    state = {"value": {"a": hostile}, "beside": OrderedDict(a=torch.ones(2), b=hostile), "key": {hostile: 1}}[place]
    path = saved(state, tmp_path)
    error = refusal(path)
    assert "would run code" in error.message
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file is harmless, and the test shows nothing"


def test_a_bare_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "was-here", tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps({"a": RunsACommand(marker)}))
    assert "not in torch's zip format" in refusal(path).message
    assert not marker.exists()


def test_the_format_before_torch_1_6_is_refused_with_a_hint(tmp_path: Path) -> None:
    error = refusal(saved({"a": torch.ones(2)}, tmp_path, legacy=True))
    assert error.message.endswith("is not in torch's zip format (torch 1.6 or later)")
    assert error.hint == "load it with transformers and save it again: save_pretrained writes safetensors"


def test_a_script_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pytorch_model/data.pkl", pickle.dumps({}))
        archive.writestr("pytorch_model/constants.pkl", pickle.dumps(()))
        archive.writestr("pytorch_model/version", b"3\n")
    refusal(path)


def test_an_archive_written_again_without_compression_is_read(tmp_path: Path) -> None:
    state = {"a": filled(torch.float32, (50,)), "b": filled(torch.float16, (3, 4))}
    assert_holds(open_checkpoint(rebuilt(saved(state, tmp_path))), state)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = rebuilt(saved({"a": torch.ones(50)}, tmp_path), compression=zipfile.ZIP_DEFLATED)
    error = refusal(path)
    assert "is compressed" in error.message
    assert error.hint is not None


def test_an_archive_of_a_big_endian_machine_is_refused(tmp_path: Path) -> None:
    path = rebuilt(saved({"a": torch.arange(3.0)}, tmp_path), replace={"byteorder": b"big"})
    assert "byte order" in refusal(path).message


def test_another_storage_of_the_same_size_that_no_tensor_uses_is_not_mistaken_for_the_right_one(tmp_path: Path) -> None:
    state = {"a": torch.arange(8.0)}
    assert_holds(open_checkpoint(rebuilt(saved(state, tmp_path), first={"data/9": bytes(32)})), state)


def test_a_storage_is_found_by_its_key_where_another_of_its_size_lies_whole_pages_away(tmp_path: Path) -> None:
    def place(name: str) -> int:
        return path.read_bytes().index(f"archive/{name}".encode())

    state, page = {"a": torch.arange(8.0)}, os.sysconf("SC_PAGESIZE")
    path = rebuilt(saved(state, tmp_path), first={"data/9": bytes(32), "filler": b""})
    missing = -(place("data/0") - place("data/9")) % page
    rebuilt(path, replace={"filler": bytes(missing)})
    assert (place("data/0") - place("data/9")) % page == 0
    assert_holds(open_checkpoint(path), state)


def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(20.0), "b": torch.ones(3)}, tmp_path)
    whole = path.read_bytes()
    for size in [0, 1, 3, 4, 22, 30, *range(50, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x.bin").message.endswith("No such file or directory")
    (tmp_path / "y.bin").mkdir()
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path / "y.bin")


def test_a_file_that_has_changed_since_it_was_opened_is_refused_by_the_reader(tmp_path: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(saved({"a": torch.ones(2)}, tmp_path))
    saved({"a": torch.ones(300)}, tmp_path)
    with Reader(checkpoint.files) as reader, pytest.raises(CheckpointError, match="has changed"):
        read_into(reader, memoryview(bytearray(8)), checkpoint.tensors["a"], 0)


def state_with(tensors: str) -> bytes:
    """Return the pickle of torch's state dict of one float tensor, with its description replaced."""
    before = b"\x80\x02}X\x01\x00\x00\x00a"
    return before + tensors.encode("latin-1") + b"s."


STORAGE = "(X\x07\x00\x00\x00storagectorch\nFloatStorage\n{key}X\x03\x00\x00\x00cpu{numel}tQ"
TENSOR = "ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + "{offset}{size}{stride}\x89ccollections\nOrderedDict\n)RtR"
SOUND = {"key": "X\x01\x00\x00\x000", "numel": "K\x04", "offset": "K\x00", "size": "K\x04\x85", "stride": "K\x01\x85"}


def described(**changes: str) -> bytes:
    return state_with(TENSOR.format(**SOUND | changes))


def test_the_description_that_the_next_test_breaks_is_sound(tmp_path: Path) -> None:
    path = rebuilt(saved({"a": torch.arange(4.0)}, tmp_path), replace={"data.pkl": described()})
    assert_holds(open_checkpoint(path), {"a": torch.arange(4.0)})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"key": "K\x00"}, id="the key of a storage is a number"),
        pytest.param({"key": "X\x01\x00\x00\x001"}, id="a storage that is not there"),
        pytest.param({"numel": "K\x05"}, id="a storage of another size"),
        pytest.param({"numel": "G\x40\x10\x00\x00\x00\x00\x00\x00"}, id="a size that is no whole number"),
        pytest.param({"numel": "J\xff\xff\xff\xff"}, id="a negative storage"),
        pytest.param({"offset": "K\x01"}, id="beyond the end"),
        pytest.param({"offset": "J\xff\xff\xff\xff"}, id="before the start"),
        pytest.param({"size": "\x8a\x09" + "\xff" * 8 + "\x00\x85"}, id="more elements than can be counted"),
        pytest.param({"size": "J\xff\xff\xff\xff\x85"}, id="a negative shape"),
        pytest.param({"size": "]"}, id="a shape that is a list"),
        pytest.param({"stride": "K\x01K\x01\x86"}, id="more strides than sizes"),
        pytest.param({"size": "N"}, id="no shape"),
    ],
)
def test_a_tensor_that_its_pickle_describes_wrongly_is_refused(changes: dict[str, str], tmp_path: Path) -> None:
    path = rebuilt(saved({"a": torch.arange(4.0)}, tmp_path), replace={"data.pkl": described(**changes)})
    assert refusal(path).message.startswith(f"{path} cannot be read: ")


# Pairs of the pair before: a text of it would be longer than any memory, and its hash would take forever.
SHARED = ")q\x00" + "h\x00h\x00\x86q\x00" * 90


def asking(instructions: str) -> bytes:
    return state_with(instructions)


@pytest.mark.parametrize(
    "instructions",
    [
        pytest.param("c__builtin__\nbytearray\nJ\x00\x00\x00\x70\x85R", id="a bytearray"),
        pytest.param("cbuiltins\nbytearray\n\x8a\x05\x00\xbc\xa0\x65\x01\x85R", id="a bytearray of 6 GB"),
        pytest.param("cbuiltins\nset\n]\x85R", id="a set"),
        pytest.param("c_codecs\nencode\nX\x00\x00\x00\x00X\x06\x00\x00\x00latin1\x86R", id="an encoding"),
        pytest.param("\x96\x00\x00\x00\x00\x01\x00\x00\x00", id="an array longer than the file"),
        pytest.param("I" + "9" * 5000 + "\n", id="a number of 5,000 digits"),
        pytest.param("(" * 100_000, id="100,000 marks"),
        pytest.param(")" + "\x85" * 100_000, id="a tuple in a tuple, 100,000 times"),
        pytest.param("(" + SHARED + "ctorch\nFloatStorage\nh\x00NNtQ", id="a storage whose key doubles 90 times"),
        pytest.param("ctorch.serialization\n_get_layout\n" + SHARED + "\x85R", id="a layout that doubles 90 times"),
        pytest.param(SHARED + "K\x01", id="a name that doubles 90 times"),
        pytest.param("\x8a\xff" + "\x7f" * 255 + "}ss", id="a key of 255 bytes"),
    ],
)
def test_a_pickle_that_asks_for_memory_is_refused_without_taking_it(instructions: str, tmp_path: Path) -> None:
    path = rebuilt(saved({"a": torch.arange(4.0)}, tmp_path), replace={"data.pkl": asking(instructions)})
    tracemalloc.start()
    try:
        refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_pickle_of_a_few_bytes_that_takes_6_gigabytes_is_refused_under_a_limit_of_the_system(tmp_path: Path) -> None:
    hostile = "cbuiltins\nbytearray\n\x8a\x05\x00\xbc\xa0\x65\x01\x85R"
    path = rebuilt(saved({}, tmp_path), replace={"data.pkl": asking(hostile)})
    program = f"""
import resource
from pathlib import Path
from merge_cli.checkpoint import open_checkpoint
from merge_cli.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
try:
    open_checkpoint(Path({str(path)!r}))
except CheckpointError as error:
    assert "bytearray" in error.message
else:
    raise SystemExit("accepted")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_local_header_that_does_not_agree_with_the_directory_is_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(4.0)}, tmp_path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = next(info.header_offset for info in archive.infolist() if info.filename.endswith("/data/0"))
    # Signature, flags, method, size, and the name.
    for at in (0, 6, 8, 24, 30):
        path.write_bytes(changed(whole, [(start + at, whole[start + at] ^ 0x21)]))
        assert "does not agree with the directory" in refusal(path).message


def test_a_directory_that_is_larger_than_any_sound_one_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with path.open("wb") as file:
        file.truncate(50_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + (50_000_000).to_bytes(4, "little") + bytes(6))
    tracemalloc.start()
    try:
        assert "its directory has 50000000 bytes" in refusal(path).message
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_torch_is_not_needed_to_find_the_tensors_of_a_pickle(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(4.0)}, tmp_path)
    program = f"""
import sys
from pathlib import Path
from merge_cli.checkpoint import open_checkpoint
assert list(open_checkpoint(Path({str(path)!r})).tensors) == ["a"]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


FUZZED = {"a": torch.arange(4.0), "b": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "x.bin"
    torch.save(FUZZED, path)
    return path, path.read_bytes()


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)


def changed(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    result = bytearray(content)
    for at, byte in changes:
        result[at % len(result)] = byte
    return bytes(result)


def assert_refused_or_read(path: Path, sound: Mapping[str, Any] | None = None) -> None:
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        if str(path) not in error.message:
            raise
        return
    # What is accepted holds what torch finds in it; a mapping, because torch then reads past wrong check sums too.
    found = read_all(checkpoint)
    try:
        theirs = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):
        # torch also refuses what says nothing of the tensors, such as a damaged number of its own in the archive.
        places = {name: (tensor.offset, tensor.shape, tensor.dtype) for name, tensor in checkpoint.tensors.items()}
        assert places == sound
        return
    assert found.keys() | checkpoint.tied.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert found[checkpoint.tied.get(name, name)] == raw_bytes(tensor)


@settings(max_examples=80, deadline=None)
@given(changes=CHANGES)
def test_a_file_with_bytes_changed_is_refused_or_read(
    fuzzed: tuple[Path, bytes], changes: list[tuple[int, int]]
) -> None:
    path, whole = fuzzed
    path.write_bytes(changed(whole, changes))
    a, b = (whole.index(number.view(torch.uint8).numpy().tobytes()) for number in FUZZED.values())
    assert_refused_or_read(path, {"a": (a, (4,), DType.F32), "b": (b, (3,), DType.BF16)})


@settings(max_examples=80, deadline=None)
@given(changes=CHANGES)
def test_a_pickle_with_bytes_changed_is_refused_or_read(
    fuzzed: tuple[Path, bytes], changes: list[tuple[int, int]]
) -> None:
    path, whole = fuzzed
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"{path.stem}/data.pkl")
    # Written again, so that the archive's check sum does not stop what is meant for the unpickler.
    assert_refused_or_read(rebuilt(path, replace={"data.pkl": changed(content, changes)}))
