"""Tries inputs one after another, and keeps the first that does what none may do."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from merge_cli.errors import MergeError

# Takes a source of chance and an empty folder, and returns whether the input was accepted.
Attempt = Callable[[Random, Path], bool]

_MOST_SECONDS = 5.0
_MOST_MORE_BYTES = 2**30
_MOST_MESSAGE = 20_000


@dataclass
class Tally:
    """What became of the inputs so far."""

    accepted: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0

    @property
    def tried(self) -> int:
        """How many there were."""
        return self.accepted + self.refused


def try_all(attempt: Attempt, folder: Path, *, inputs: int, seed: int) -> Tally:
    """Try ``inputs`` inputs; an exception that is none of ours leaves with a note that says how to repeat it."""
    tally = Tally()
    for number in range(inputs):
        here = folder / str(number)
        here.mkdir()
        try:
            _try_one(attempt, Random(f"{seed}:{number}"), here, tally)
        except BaseException as error:
            error.add_note(f"input {number} of seed {seed}, in {here}")
            raise
        shutil.rmtree(here)
    return tally


def _try_one(attempt: Attempt, chance: Random, here: Path, tally: Tally) -> None:
    began = time.perf_counter()
    try:
        if attempt(chance, here):
            tally.accepted += 1
        else:
            tally.refused += 1
    except MergeError as error:
        _check(error)
        tally.refused += 1
    tally.slowest_seconds = max(tally.slowest_seconds, time.perf_counter() - began)


def _check(error: MergeError) -> None:
    assert error.exit_code in (2, 3, 4, 6), error
    assert len(str(error)) < _MOST_MESSAGE, f"a message of {len(str(error))} characters"


def listing(folder: Path) -> list[str]:
    """Return every path below a folder; what an attempt calls before and after, to see that nothing was made."""
    return sorted(map(str, folder.rglob("*")))


def main(attempt: Attempt, what: str) -> None:
    """Run from the command line and print the tally."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    _limit_memory()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            tally = try_all(attempt, Path(folder), inputs=options.inputs, seed=options.seed)
        except BaseException:
            print(f"{what}: an input did what none may do", file=sys.stderr)
            raise
    print(
        f"{what}: {tally.tried} inputs in {time.perf_counter() - began:.0f} s, {tally.accepted} accepted, "
        f"{tally.refused} refused; the slowest took {tally.slowest_seconds:.2f} s"
    )
    if tally.slowest_seconds > _MOST_SECONDS:
        raise SystemExit(f"an input took more than {_MOST_SECONDS} s")


def _limit_memory() -> None:
    """Let what takes much more memory than there is in use now end in a MemoryError."""
    import torch  # noqa: F401 - its libraries must be there before the limit is

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MOST_MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
