"""Fuzzes the manifests of merged checkpoints: ``python -m tests.fuzz.manifests --inputs 2000``."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from random import Random

from merge_cli.errors import VerificationError
from merge_cli.verification import Replay, verify
from tests.fuzz.breaking import break_bytes, break_tree, dumped
from tests.fuzz.journals import family
from tests.fuzz.trying import listing, main

_MANIFEST, _DIGESTS = "merge_manifest.json", "SHA256SUMS"


def attempt(chance: Random, folder: Path) -> bool:
    """Break a manifest or the list of digests, and verify the checkpoint, in part by computing it again."""
    out = folder / "out"
    shutil.copytree(family() / "whole" / "out", out)
    if chance.random() < 0.8:
        content = json.loads((out / _MANIFEST).read_bytes())
        (out / _MANIFEST).write_bytes(dumped(break_tree(content, chance, times=chance.randrange(1, 4))))
    if chance.random() < 0.5:
        _list_again(out)
    for name in (_MANIFEST, _DIGESTS):
        if chance.random() < 0.2:
            (out / name).write_bytes(break_bytes((out / name).read_bytes(), chance, times=chance.randrange(1, 3)))
    before = listing(folder)
    try:
        found = verify(out, replay=Replay(2, chance.randrange(9)) if chance.random() < 0.5 else None, threads=1)
    except VerificationError:
        # What the tool has written itself is no input: this is not among the errors that an input may end in.
        return False
    finally:
        assert listing(folder) == before
    assert all(len(problem) < 20_000 for problem in found.problems)
    return found.sound


def _list_again(out: Path) -> None:
    """Give the list of digests the manifest's own as it is now, so that it is believed."""
    digest = hashlib.sha256((out / _MANIFEST).read_bytes()).hexdigest()
    lines = (out / _DIGESTS).read_text().splitlines()
    lines = [f"{digest}  {_MANIFEST}" if line.endswith(f"  {_MANIFEST}") else line for line in lines]
    (out / _DIGESTS).write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(attempt, "manifests")
