"""Fuzzes pickles of tensors: ``python -m tests.fuzz.pickles --inputs 5000``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from random import Random

import torch

from merge_cli.checkpoint import Reader, open_checkpoint
from tests.fuzz.breaking import break_bytes
from tests.fuzz.trying import listing, main

_STATE = {
    "a": torch.arange(4.0), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.arange(6).view(2, 3),
    "d": torch.zeros(0, 2), "e": torch.arange(8.0, dtype=torch.float16)[2:6],
}  # fmt: skip
# Instructions that take memory, run something, or are torch's in another place.
_HOSTILE = (
    b"cbuiltins\nbytearray\n", b"cos\nsystem\n", b"c__builtin__\neval\n", b"\x8a\x05\x00\xbc\xa0\x65\x01\x85R",
    b"\x96\xff\xff\xff\xff\xff\xff\xff\x00", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\x7f", b"\x8e\0\0\0\0\1\0\0\0",
    b"(" * 500, b"\x85" * 500, b"2", b"0", b"1", b"t", b"R", b"Q", b"b", b"s", b"u", b"e", b"a", b")", b"}", b"]",
    b"N", b"\x88", b"\x81", b"\x93", b"\x94", b"\x95\0\0\0\0\0\0\0\0", b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff",
    b"q\0", b"h\0", b"h\x02", b"ctorch\nFloatStorage\n", b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"\x8a\xff" + b"\x7f" * 255, b"I" + b"9" * 5000 + b"\n", b"X\xff\xff\xff\xff", b"X\x01\0\0\0a",
    b"G\x7f\xf0\0\0\0\0\0\0", b"\x80\x04", b".",
)  # fmt: skip


def attempt(chance: Random, folder: Path) -> bool:
    """Break a saved state dict, its pickle or its archive, and read what it still says."""
    path = folder / "x.bin"
    saved = io.BytesIO()
    torch.save(_STATE, saved)
    if chance.random() < 0.2:
        path.write_bytes(break_bytes(saved.getvalue(), chance, times=chance.randrange(1, 4)))
    else:
        _write_again(saved, path, chance)
    before = listing(folder)
    checkpoint = open_checkpoint(path)
    assert listing(folder) == before
    with Reader(checkpoint.files) as reader:
        for tensor in checkpoint.tensors.values():
            ((_, offset, nbytes),) = tensor.byte_ranges(0, tensor.numel)
            assert offset + nbytes <= path.stat().st_size
            reader.read_bytes(tensor, 0, tensor.numel)
    return True


def _write_again(saved: io.BytesIO, path: Path, chance: Random) -> None:
    """Write the archive with a broken pickle and right check sums."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/data.pkl"):
                content = _broken(content, chance)
            deflated = chance.random() < 0.01
            new.writestr(name, content, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)


def _broken(pickle: bytes, chance: Random) -> bytes:
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(pickle) + 1)
        pickle = pickle[:at] + chance.choice(_HOSTILE) + pickle[at + chance.choice((0, 0, 1, 4)) :]
    return break_bytes(pickle, chance, times=chance.randrange(2))


if __name__ == "__main__":
    main(attempt, "pickles")
