"""The corpus: small files that did harm once, or would have; ``python -m tests.fuzz.seeds`` writes them again.

Each is named by what is wrong with it, below the name of what reads it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "corpus"
_STATE = b"\x80\x02}X\x01\x00\x00\x00a%bs."
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(%(storage)sK\x00%(size)s%(stride)s\x89ccollections\nOrderedDict\n)RtR"
_STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n%(key)sX\x03\x00\x00\x00cpuK\x04tQ"


def _tensor(key: bytes = b"X\x01\x00\x00\x000", size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85") -> bytes:
    return _STATE % (_TENSOR % {b"storage": _STORAGE % {b"key": key}, b"size": size, b"stride": stride})


def _archive(pickle: bytes, *, data: bytes = bytes(16), compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, member in (("data.pkl", pickle), ("byteorder", b"little"), ("data/0", data), ("version", b"3\n")):
            # A fixed date, so that the same file is written each time.
            archive.writestr(zipfile.ZipInfo(f"x/{name}"), member, compression)
    return content.getvalue()


def _damaged_header() -> bytes:
    whole = bytearray(_archive(_tensor()))
    whole[whole.index(b"x/data/0")] ^= 0x20
    return bytes(whole)


def _pickles() -> Iterator[tuple[str, bytes]]:
    yield "bytearray-of-6-gigabytes.bin", _archive(_STATE % b"cbuiltins\nbytearray\n\x8a\x05\x00\xbc\xa0\x65\x01\x85R")
    yield "runs-a-command.bin", _archive(_STATE % b"cos\nsystem\nX\x0a\x00\x00\x00touch made\x85R")
    yield "key-of-a-storage-is-a-number.bin", _archive(_tensor(b"K\x00"))
    yield "key-of-a-storage-doubles.bin", _archive(_tensor(b")q\x00" + b"h\x00h\x00\x86q\x00" * 90))
    yield "beyond-its-storage.bin", _archive(_tensor(size=b"K\x05\x85"))
    yield (
        "one-number-for-a-trillion.bin",
        _archive(_tensor(size=b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", stride=b"K\x00\x85")),
    )
    yield "marks-without-end.bin", _archive(b"\x80\x02" + b"(" * 2000 + b".")
    yield "memory-of-four-billion-places.bin", _archive(b"\x80\x02]r\xff\xff\xff\xff.")
    yield "compressed.bin", _archive(_tensor(), data=bytes(1_000_000), compression=zipfile.ZIP_DEFLATED)
    yield "local-header-of-another-name.bin", _damaged_header()
    yield "protocol-4.bin", _archive(b"\x80\x04}.")


def _states() -> Iterator[tuple[str, bytes]]:
    moments, one = torch.ones(2), [{"params": [0]}]
    whole: dict[str, Any] = {
        "entry-is-a-number": {"param_groups": one, "state": {0: 5}},
        "group-without-params": {"param_groups": [{}], "state": {0: {"exp_avg_sq": moments}}},
        "group-is-a-number": {"param_groups": [5], "state": {}},
        "groups-are-a-mapping": {"param_groups": {0: one}, "state": {}},
        "params-are-names": {"param_groups": [{"params": ["w"]}], "state": {}},
        "moment-is-a-text": {"param_groups": one, "state": {0: {"exp_avg_sq": "x"}}},
        "moment-is-complex": {"param_groups": one, "state": {0: {"exp_avg_sq": moments.to(torch.complex64)}}},
        "moment-without-numbers": {"param_groups": one, "state": {0: {"exp_avg_sq": moments.to("meta")}}},
        "moment-is-sparse": {"param_groups": one, "state": {0: {"exp_avg_sq": torch.eye(2).to_sparse()}}},
        "step-is-no-number": {"param_groups": one, "state": {0: {"exp_avg_sq": moments, "step": [1]}}},
        "keys-are-texts": {"param_groups": one, "state": {"0": {"exp_avg_sq": moments}}},
        "not-a-mapping": [1, 2],
        "nothing": None,
    }
    for name, state in whole.items():
        content = io.BytesIO()
        torch.save(state, content)
        yield f"{name}.pt", content.getvalue()
    yield "compressed.pt", _archive(b"\x80\x02}.", data=bytes(4_000_000), compression=zipfile.ZIP_DEFLATED)


def _headers() -> Iterator[tuple[str, bytes]]:
    float_entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    texts: dict[str, tuple[str, int]] = {
        "gap": (json.dumps({"a": {**float_entry, "data_offsets": [4, 8]}}), 8),
        "overlap": (json.dumps({"a": float_entry, "b": float_entry}), 4),
        "shape-too-large": (json.dumps({"a": {**float_entry, "shape": [2**62, 2**62, 0]}}), 4),
        "negative-offset": (json.dumps({"a": {**float_entry, "data_offsets": [-4, 0]}}), 4),
        "name-twice": ('{"a":' + json.dumps(float_entry) + ',"a":' + json.dumps(float_entry) + "}", 4),
        "deeply-nested": ("[" * 5000, 0),
        "number-of-5000-digits": ('{"a":' + "9" * 5000 + "}", 0),
        "half-a-character": ('{"\\ud800":' + json.dumps(float_entry) + "}", 4),
    }
    for name, (text, size) in texts.items():
        yield f"{name}.safetensors", len(text).to_bytes(8, "little") + text.encode() + bytes(size)
    yield "length-of-all-memory.safetensors", (2**62).to_bytes(8, "little") + b"{}"


def _recipes() -> Iterator[tuple[str, bytes]]:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    yield "runs-a-command.yml", b"merge_method: !!python/object/apply:os.system [touch made]\nmodels: []\n"
    yield "a-billion-words.yml", bomb.encode()
    yield "refers-to-itself.yml", b"models: &a [*a]\nmerge_method: linear\n"
    yield "deeply-nested.yml", b"models: " + b"[" * 300 + b"]" * 300
    yield "no-text.yml", b"\xff\xfe\x00\xd8"
    yield "number-of-5000-digits.yml", b"merge_method: linear\nseed: " + b"9" * 5000 + b"\nmodels: [{model: a}]\n"


def files() -> dict[str, bytes]:
    """Return every file of the corpus by its path in the folder."""
    kinds = {"pickles": _pickles(), "states": _states(), "headers": _headers(), "recipes": _recipes()}
    return {f"{kind}/{name}": content for kind, found in kinds.items() for name, content in found}


if __name__ == "__main__":
    for each, written in files().items():
        path = FOLDER / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(written)
