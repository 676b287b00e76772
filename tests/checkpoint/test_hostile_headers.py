import copy
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.header import Header, read_header
from merge_cli.errors import CheckpointError
from tests.checkpoint.helpers import Failing, entry, write_raw

F32 = entry()
TWO = {"a": entry(offsets=[0, 4]), "b": entry(offsets=[4, 8])}


def refusal(path: Path, files: Files | None = None) -> str:
    """What is said of a file that must be refused; it must name the file."""
    with pytest.raises(CheckpointError) as caught:
        read_header(path, files or Files())
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("header", "data_bytes", "why"),
    [
        pytest.param({"a": entry(offsets=[0, 4]), "b": entry(offsets=[2, 6])}, 6, "'b' overlaps", id="overlap"),
        pytest.param({"a": F32, "b": F32}, 4, "'b' overlaps", id="the same bytes twice"),
        pytest.param({"a": entry(offsets=[4, 8])}, 8, "'a' leaves a gap", id="gap at the start"),
        pytest.param({"a": F32, "b": entry(offsets=[8, 12])}, 12, "'b' leaves a gap", id="gap"),
        pytest.param(TWO, 4, "end at byte", id="past the end"),
        pytest.param(TWO, 9, "end at byte", id="a byte too many"),
        pytest.param({}, 1, "end at byte", id="bytes of no tensor"),
        pytest.param({"a": entry(offsets=[10**15, 10**15 + 4])}, 4, "gap", id="far past the end"),
        pytest.param({"a": F32, "e": entry(shape=[0], offsets=[2, 2])}, 4, "overlaps", id="empty inside another"),
        pytest.param({"a": F32, "e": entry(shape=[0], offsets=[9, 9])}, 4, "gap", id="empty past the end"),
    ],
)
def test_tensors_must_fill_the_file_each_byte_once(header: Any, data_bytes: int, why: str, tmp_path: Path) -> None:
    assert why in refusal(write_raw(tmp_path / "x.safetensors", header, bytes(data_bytes)))


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        pytest.param(entry(offsets=[4, 0]), "takes 4 bytes, its offsets give -4", id="offsets backwards"),
        pytest.param(entry(offsets=[0, 3]), "takes 4 bytes, its offsets give 3", id="size and shape differ"),
        pytest.param(entry(shape=[2**40, 2**40]), "more elements than can be counted", id="huge shape"),
        pytest.param(entry(shape=[2**40]), "takes 4398046511104 bytes", id="large shape"),
        pytest.param(entry(shape=[2**62, 2**62, 0], offsets=[0, 0]), "more elements", id="huge and empty"),
        pytest.param(entry(shape=[2**63]), "natural", id="size of 64 bits"),
        pytest.param(entry(shape=[1] * 65), "natural", id="65 dimensions"),
        pytest.param(entry(shape=[-1]), "natural", id="negative size"),
        pytest.param(entry(shape=[-1, -1]), "natural", id="negative sizes whose product is right"),
        pytest.param(entry(shape=[1.0]), "natural", id="float size"),
        pytest.param(entry(shape=[True]), "natural", id="bool size"),
        pytest.param(entry(shape=["1"]), "natural", id="text size"),
        pytest.param(entry(shape=[None]), "natural", id="null size"),
        pytest.param(entry(shape=[[1]]), "natural", id="nested size"),
        pytest.param(entry(shape=1), "natural", id="shape a number"),
        pytest.param(entry(shape="1"), "natural", id="shape a text"),
        pytest.param(entry(shape={"0": 1}), "natural", id="shape an object"),
        pytest.param(entry(shape=None), "natural", id="shape null"),
        pytest.param(entry(offsets=[0]), "natural", id="one offset"),
        pytest.param(entry(offsets=[0, 4, 8]), "natural", id="three offsets"),
        pytest.param(entry(offsets=[0.0, 4.0]), "natural", id="float offsets"),
        pytest.param(entry(offsets=[False, 4]), "natural", id="bool offset"),
        pytest.param(entry(offsets=[-4, 0]), "natural", id="negative offset"),
        pytest.param(entry(offsets=None), "natural", id="offsets null"),
        pytest.param(entry(offsets="04"), "natural", id="offsets a text"),
        pytest.param(entry(dtype="F33"), "has dtype 'F33', which is not supported", id="unknown dtype"),
        pytest.param(entry(dtype="f32"), "not supported", id="dtype in small letters"),
        pytest.param(entry(dtype="C64"), "not supported", id="complex dtype"),
        pytest.param(entry(dtype="F4"), "not supported", id="dtype below a byte"),
        pytest.param(entry(dtype="F8_E8M0"), "is quantised: tensor", id="exponents of a block format"),
        pytest.param(entry(dtype=""), "not supported", id="no dtype"),
        pytest.param(entry(dtype=None), "not supported", id="dtype null"),
        pytest.param(entry(dtype=[]), "not supported", id="dtype a list"),
        pytest.param(entry(dtype={}), "not supported", id="dtype an object"),
        pytest.param(entry(dtype=7), "not supported", id="dtype a number"),
        pytest.param({**F32, "scale": 2}, "exactly dtype, shape and data_offsets", id="extra key"),
        pytest.param({"dtype": "F32", "shape": [1]}, "exactly", id="no offsets"),
        pytest.param({"dtype": "F32", "data_offsets": [0, 4]}, "exactly", id="no shape"),
        pytest.param({"shape": [1], "data_offsets": [0, 4]}, "exactly", id="no dtype at all"),
        pytest.param({}, "exactly", id="empty object"),
        pytest.param(None, "exactly", id="null"),
        pytest.param([0, 4], "exactly", id="list"),
        pytest.param("F32", "exactly", id="text"),
        pytest.param(4, "exactly", id="number"),
    ],
)
def test_what_a_header_says_of_a_tensor_is_checked(tensor: Any, why: str, tmp_path: Path) -> None:
    message = refusal(write_raw(tmp_path / "x.safetensors", {"a": tensor}, bytes(4)))
    assert "'a'" in message
    assert why in message


@pytest.mark.parametrize(
    ("header", "why"),
    [
        pytest.param(b'{"a":1,"a":1}', "'a' stands twice", id="name twice"),
        pytest.param(b'{"__metadata__":{},"__metadata__":{}}', "'__metadata__' stands twice", id="metadata twice"),
        pytest.param(b'{"__metadata__":{"k":"v","k":"w"}}', "'k' stands twice", id="key of the metadata twice"),
        pytest.param(b'{"a":{"dtype":"F32","dtype":"F16"}}', "'dtype' stands twice", id="key of a tensor twice"),
        pytest.param(b'{"\xff":1}', "not valid JSON", id="not UTF-8"),
        pytest.param("{}".encode("utf-16"), "not valid JSON", id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf{}", "not valid JSON", id="byte order mark"),
        pytest.param(b'{"\\ud800":1}', "cannot be the name of a tensor", id="half a surrogate pair in a name"),
        pytest.param(b'{"__metadata__":{"k":"\\udfff"}}', "surrogate", id="half a surrogate pair in the metadata"),
        pytest.param(b"[" * 200_000, "nested too deeply", id="deep lists"),
        pytest.param(b'{"a":' * 200_000, "nested too deeply", id="deep objects"),
        pytest.param(b"[]", "not a JSON object", id="list"),
        pytest.param(b"null", "not a JSON object", id="null"),
        pytest.param(b"7", "not a JSON object", id="number"),
        pytest.param(b'"{}"', "not a JSON object", id="text"),
        pytest.param(b"", "not valid JSON", id="nothing"),
        pytest.param(b"        ", "not valid JSON", id="blanks"),
        pytest.param(b"{", "not valid JSON", id="cut off"),
        pytest.param(b"{}x", "not valid JSON", id="more after the end"),
        pytest.param(b"{}\0\0", "not valid JSON", id="padded with zero bytes"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "not valid JSON", id="a number of 5000 digits"),
        pytest.param(b'{"a":NaN}', "exactly", id="NaN"),
        pytest.param({"__metadata__": {"k": 1}}, "__metadata__", id="metadata of numbers"),
        pytest.param({"__metadata__": {"k": {"l": "m"}}}, "__metadata__", id="nested metadata"),
        pytest.param({"__metadata__": {"k": None}}, "__metadata__", id="metadata of nulls"),
        pytest.param({"__metadata__": ["k"]}, "__metadata__", id="metadata a list"),
        pytest.param({"__metadata__": None}, "__metadata__", id="metadata null"),
        pytest.param({"__metadata__": "k"}, "__metadata__", id="metadata a text"),
    ],
)
def test_a_header_must_be_one_json_object_of_text(header: Any, why: str, tmp_path: Path) -> None:
    assert why in refusal(write_raw(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("claim", [3, 2**31, 100_000_000, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_that_claims_more_bytes_than_follow_is_refused_before_they_are_asked_for(
    claim: int, tmp_path: Path
) -> None:
    path = write_raw(tmp_path / "x.safetensors", b"{}", length=claim)
    assert f"claims {claim} bytes of the 2 that follow" in refusal(path)


def test_a_header_above_the_limit_of_the_format_is_refused_even_where_the_file_is_long_enough(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(path, 200_000_000)
    assert "claims 100000001 bytes" in refusal(path)


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_the_length_of_its_header_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(size))
    assert f"it has {size} bytes" in refusal(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", TWO, bytes(8))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refusal(path)
    path.write_bytes(whole)
    assert list(read_header(path, Files()).tensors) == ["a", "b"]


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x.safetensors").endswith("No such file or directory")
    (tmp_path / "y.safetensors").mkdir()
    assert refusal(tmp_path / "y.safetensors").endswith("Is a directory")


@pytest.mark.parametrize("call", ["open_read", "stat", "pread"])
def test_a_failing_disk_is_an_error_that_names_the_file_and_leaves_nothing_open(call: str, tmp_path: Path) -> None:
    files = Failing(errno.EIO, [call])
    assert refusal(write_raw(tmp_path / "x.safetensors", TWO, bytes(8)), files).endswith("Input/output error")
    assert files.held == []


def test_a_long_hostile_name_does_not_fill_the_message(tmp_path: Path) -> None:
    assert len(refusal(write_raw(tmp_path / "x.safetensors", {"a" * 10_000: None}))) < 500 + len(str(tmp_path))


def test_many_names_of_which_the_last_stands_twice_are_refused_at_once(tmp_path: Path) -> None:
    names = [*(f"n{number}" for number in range(100_000)), "n99999"]
    header = "{" + ",".join(f'"{name}":0' for name in names) + "}"
    assert "'n99999' stands twice" in refusal(write_raw(tmp_path / "x.safetensors", header.encode()))


# A valid file of four tensors, from which the fuzzing starts.
VALID: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": entry("F32", [2, 3], [0, 24]),
    "b": entry("BF16", [3], [24, 30]),
    "e": entry("I64", [0], [30, 30]),
    "c": entry("U8", [], [30, 31]),
}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.safetensors"


def sound_or_refused(path: Path) -> Header | None:
    """Read a file: what is accepted must be accepted by the safetensors library too, and in the same way."""
    try:
        header = read_header(path, Files())
    except CheckpointError as error:
        if str(path) not in error.message:
            raise
        return None
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {
        name: tuple(info["shape"]) for name, info in theirs.items()
    }
    whole = path.read_bytes()
    for name, tensor in header.tensors.items():
        assert whole[tensor.offset : tensor.offset + tensor.nbytes] == bytes(theirs[name]["data"])
    return header


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=80))
def test_random_bytes_are_refused_or_sound(fuzzed: Path, content: bytes) -> None:
    fuzzed.write_bytes(content)
    sound_or_refused(fuzzed)


@settings(max_examples=150, deadline=None)
@given(header=st.binary(max_size=60), data=st.binary(max_size=8))
def test_random_headers_of_the_right_length_are_refused_or_sound(fuzzed: Path, header: bytes, data: bytes) -> None:
    sound_or_refused(write_raw(fuzzed, header, data))


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(b'0123456789"{}[],:.-eE \\\xff\0'), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_a_valid_file_with_bytes_changed_or_inserted_is_refused_or_sound(
    fuzzed: Path, changes: list[tuple[int, int, bool]]
) -> None:
    header = bytearray(json.dumps(VALID).encode())
    for at, byte, insert in changes:
        place = at % len(header)
        header[place : place if insert else place + 1] = bytes([byte])
    sound_or_refused(write_raw(fuzzed, bytes(header), bytes(31)))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 4, 24, 2**31, 2**63 - 1, 2**63, -1])
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.sampled_from(["F32", "BF16", "F64", "BOOL", "C64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(VALID)),
    key=st.sampled_from(["dtype", "shape", "data_offsets", "other", None]),
    value=ANYTHING | st.lists(st.integers(0, 40), max_size=3),
)
def test_a_valid_file_with_anything_at_all_in_one_place_is_refused_or_sound(
    fuzzed: Path, name: str, key: str | None, value: Any
) -> None:
    header = copy.deepcopy(VALID)
    if key is None:
        header[name] = value
    else:
        header[name][key] = value
    sound_or_refused(write_raw(fuzzed, header, bytes(31)))


def test_the_fuzzing_starts_from_a_file_that_is_sound(fuzzed: Path) -> None:
    header = sound_or_refused(write_raw(fuzzed, VALID, bytes(range(31))))
    assert header is not None
    assert list(header.tensors) == ["a", "b", "e", "c"]
