import subprocess
import sys
from pathlib import Path

import pytest

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.bounded_json import parse_json, read_json
from merge_cli.errors import CheckpointError


def test_an_object_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1, {"b": null}], "größe": 1.5, "a": 2}')
    assert read_json(tmp_path / "x.json", Files()) == {"a": 2, "größe": 1.5}


@pytest.mark.parametrize(("depth", "sound"), [(30, True), (64, True), (65, False), (500, False), (100_000, False)])
def test_what_is_nested_deeper_than_any_configuration_is_refused(depth: int, sound: bool, tmp_path: Path) -> None:
    # The value inside and the object itself are levels too.
    (tmp_path / "x.json").write_text('{"a":' * (depth - 1) + "{}" + "}" * (depth - 1))
    if sound:
        assert "a" in read_json(tmp_path / "x.json", Files())
    else:
        with pytest.raises(CheckpointError, match="nested too deeply"):
            read_json(tmp_path / "x.json", Files())


@pytest.mark.parametrize("text", ['{"a": ["\\udfff"]}', '{"a": {"\\ud800": 1}}', '"\\ud800"'])
def test_halves_of_surrogate_pairs_are_found_wherever_they_stand(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match="half of a surrogate pair"):
        read_json(tmp_path / "x.json", Files())


@pytest.mark.parametrize("value", [b"[],", b"{},", b"0,", b'"",'])
def test_more_values_than_any_header_has_are_refused_before_they_are_made(value: bytes) -> None:
    with pytest.raises(ValueError, match="more than 5000000 values"):
        parse_json(b"[" + value * 5_000_001 + b"0]")


# What 100 MB of JSON that is just about parsed takes at most: lists, numbers, names, text of wide characters.
LARGEST = {
    "lists": "b'[' + b'[],' * 2_499_999 + b'0' + b' ' * 90_000_000 + b']'",
    "numbers": "b'[' + b'123456789012345,' * 4_999_990 + b'0]'",
    "names": "b'{' + b','.join(b'\"%014d\":0' % i for i in range(4_999_990)) + b'}'",
    "text": "'{\"a\":\"😀'.encode() + b'x' * 99_000_000 + b'\"}'",
}


@pytest.mark.parametrize("kind", LARGEST)
def test_a_hundred_megabytes_of_json_take_bounded_memory(kind: str, tmp_path: Path) -> None:
    program = f"""
import resource, sys
from pathlib import Path
from merge_cli.checkpoint import Files
from merge_cli.checkpoint.header import read_header
from merge_cli.errors import CheckpointError

raw = {LARGEST[kind]}
with open(sys.argv[1], "wb") as file:
    file.write(len(raw).to_bytes(8, "little") + raw)
del raw
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 1_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    read_header(Path(sys.argv[1]), Files())
except CheckpointError as error:
    print("refused:", error.message[:500])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.startswith("refused: ")
