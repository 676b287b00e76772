"""Merges random recipes over random checkpoints in a loop, kills them at random, and checks what comes out.

    python -m tests.crash.soak --minutes 30

Every merge is killed up to four times, in a process of its own, and goes on each time. At any moment OUT must be absent
or complete; at the end it must agree with the oracle, and be the same to the byte as a merge that nothing stopped.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.digest_file import write_digests
from merge_cli.kernels import GRAIN
from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from tests.checkpoints import read_checkpoint, recipe_over
from tests.crash.cases import check_sums, contents, digest, shown
from tests.crash.expected import Case, check, random_case
from tests.crash.processes import KillAt, forked
from tests.crash.seam import Seam

_INPUTS = ("base", "m0", "m1", "m2", "m3")


@dataclass
class Score:
    """What was done so far."""

    merges: int = 0
    kills: int = 0
    resumes: int = 0
    methods: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Say it in a line."""
        methods = ", ".join(f"{name} {count}" for name, count in sorted(self.methods.items()))
        return f"{self.merges} merges survived {self.kills} kills; {self.resumes} went on from a journal ({methods})"


def main() -> int:
    """Run until the time is over or something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--merges", type=int, default=sys.maxsize, help="end after so many")
    parser.add_argument("--seed", type=int, default=None, help="of the first merge; the next has the next number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * options.minutes
    seed = options.seed if options.seed is not None else random.randrange(10**9)
    score, said = Score(), time.monotonic()
    while time.monotonic() < end and score.merges < options.merges:
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        try:
            one(folder, seed, score)
        except BaseException:
            traceback.print_exc()
            print(f"{score}\nfailed: --seed {seed}, see {folder}", flush=True)
            return 1
        shutil.rmtree(folder)
        seed += 1
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{(end - said) / 60:.0f} minutes left: {score}", flush=True)
    print(f"done: {score}", flush=True)
    return 0


def one(folder: Path, seed: int, score: Score) -> None:
    """Make a case, merge it with kills in between, and check everything."""
    source = random.Random(seed)
    case = random_case(folder, source)
    inputs = _digests(folder)
    (folder / "whole").mkdir()
    seam, shard_size = Seam(), source.choice((5_000_000_000, 5_000_000_000, 3_000))
    merge(_planned(folder, case, source, shard_size), folder / "whole" / "out", sync=False, files=seam)
    wanted = contents(folder / "whole" / "out")
    old = _old(folder, source)
    _merge_with_kills(folder, case, source, score, old, wanted, shard_size, len(seam.made))
    assert shown(folder / "out") == wanted, "not the same bytes"
    check_sums(folder / "out")
    check(case, read_checkpoint(folder / "out"))
    assert _digests(folder) == inputs, "an input was changed"
    score.merges += 1
    score.methods[case.recipe["merge_method"]] += 1


def _merge_with_kills(
    folder: Path, case: Case, source: random.Random, score: Score, old: dict[str, bytes] | None,
    wanted: dict[str, bytes], shard_size: int, calls: int,
) -> None:  # fmt: skip
    for attempt in range(6):
        number, pause, delay = None, 0.0, None
        if attempt < 4 and source.random() < 0.85:
            if source.random() < 0.5:
                number = source.randrange(calls)
            else:
                pause, delay = 0.001, source.random() * 0.0015 * calls
        files = KillAt(number, after=source.random() < 0.5, pause=pause)
        plan = _planned(folder, case, source, shard_size)
        options = {"force": old is not None, "sync": source.random() < 0.3, "processes": source.random() < 0.5}
        work = _working(plan, folder / "out", files, options)
        ended = forked(work, folder / "said", kill_after=delay)
        _check_all_or_nothing(folder / "out", old, wanted)
        if not ended.killed:
            assert ended.code == 0, ended.said
            score.resumes += int(ended.said.split()[-1]) > 0
            return
        score.kills += 1
        if (folder / "out").exists() and shown(folder / "out") == wanted and old is None:
            return
    raise AssertionError("still not done")


def _working(plan: MergePlan, out: Path, files: Seam, options: Mapping[str, bool]) -> Callable[[], int]:
    def work() -> int:
        print(merge(plan, out, files=files, **options).resumed_bytes)
        return 0

    return work


def _planned(folder: Path, case: Case, source: random.Random, shard_size: int) -> MergePlan:
    options: dict[str, Any] = {"threads": source.randint(1, 3), "shard_size": shard_size}
    plan = build_plan(recipe_over(folder, case.recipe), **options)
    return replace(plan, block_numel=GRAIN) if source.random() < 0.7 else plan


def _old(folder: Path, source: random.Random) -> dict[str, bytes] | None:
    if source.random() < 0.7:
        return None
    shutil.copytree(folder / "m0", folder / "out")
    write_digests(folder / "out", Files(), sync=False)
    return contents(folder / "out")


def _check_all_or_nothing(out: Path, old: dict[str, bytes] | None, wanted: dict[str, bytes]) -> None:
    if old is None:
        assert not out.exists() or shown(out) == wanted, "neither absent nor complete"
    else:
        assert out.exists(), "the older output is gone and the new one is not there"
        assert shown(out) in (old, wanted), "neither the older output nor the new one"


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.name: digest(path) for path in sorted(folder.iterdir()) if path.name.removeprefix("fisher-") in _INPUTS
    }


if __name__ == "__main__":
    sys.exit(main())
