"""Kills the program with SIGKILL while it merges, at random moments and at every kind of system call.

    python -m tests.crash.kills --kills 200
    python -m tests.crash.kills --sweep linear

The second kills one merge just before and just after every single call that it makes.

After each kill OUT is absent or complete (the older or the new one with --force), the inputs are untouched, and the
same command goes on, to be killed again or to end; its bytes are those of a merge that nothing stopped.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from merge_cli.run import merge
from merge_cli.stream.journal import JOURNAL_FILE, read_journal
from tests.checkpoints import write_recipe
from tests.crash.cases import RECIPES, check_sums, contents, digest, planned, shown, write_models
from tests.crash.processes import KillAt, command_line, forked
from tests.crash.seam import Seam

# How many of the last calls make the commit, and what comes after it.
_LAST_CALLS = 24
_MEMORY = "4MiB"

# The program in an interpreter of its own, with writes so slow that it is killed in the middle of its work.
_PROGRAM = """
import sys, time
from pathlib import Path
from merge_cli.checkpoint import Files
from merge_cli.cli import main

write = Files.pwrite

def slow(self, fd, view, offset):
    Path("working").touch()
    time.sleep(0.02)
    return write(self, fd, view, offset)

Files.pwrite = slow
sys.argv = ["merge-cli", *sys.argv[1:]]
main()
"""


@dataclass
class Score:
    """What was done: kills by the phase in which they landed."""

    phases: Counter[str] = field(default_factory=Counter)
    merges: int = 0
    resumed: int = 0
    last: str = ""


@dataclass(frozen=True)
class Victim:
    """A merge that is to be killed: where it is, what was there before, what must come out, and its calls."""

    folder: Path
    name: str
    old: dict[str, bytes] | None
    wanted: dict[str, bytes]
    calls: int
    commit: int
    exchanges: bool = True

    @property
    def out(self) -> Path:
        """The output."""
        return self.folder / "out"

    def arguments(self, threads: int) -> list[str]:
        """Return the command."""
        more = ["--force"] if self.old is not None else []
        return [*_command(self.name, threads), "out", *more]


def victim(folder: Path, name: str, *, replaces: bool) -> Victim:
    """Merge in peace, to know what must come out."""
    write_recipe(folder / f"{name}.yml", RECIPES[name])
    peace = folder / f"peace of {name}"
    seam = Seam()
    if not peace.exists():
        said = folder / "said"
        # Where the others will be, because the manifest says where the recipe lies as seen from there.
        ended = forked(command_line(folder, [*_command(name, 2), "out"], seam), said)
        assert ended.code == 0, ended.said
        peace.mkdir()
        (folder / "out").rename(peace / "out")
    plan = planned(folder, RECIPES[name], memory=4 * 2**20, threads=1)
    merge(plan, folder / "counted" / "out", files=seam)
    commit = max(call.number for call in seam.made if call.name == "rename")
    shutil.rmtree(folder / "counted")
    old = contents(folder / "older") if replaces else None
    return Victim(folder, name, old, contents(peace / "out"), len(seam.made), commit)


def _command(name: str, threads: int) -> list[str]:
    return ["merge", f"{name}.yml", "--quiet", "--threads", str(threads), "--memory", _MEMORY]


def kill_until_done(target: Victim, files: Iterator[KillAt | float], score: Score) -> None:
    """Kill a merge as often as there is something to kill it with, then let it end."""
    for path in (target.out, target.folder / "out.partial", target.folder / "out.replaced"):
        shutil.rmtree(path, ignore_errors=True)
    if target.old is not None:
        shutil.copytree(target.folder / "older", target.out)
    done = False
    while not done:
        done = not _run(target, next(files, None), score)
        _check(target)
    assert contents(target.out) == target.wanted, "other bytes than those of a merge that nothing stopped"
    check_sums(target.out)
    score.merges += 1


def _run(target: Victim, by: KillAt | float | None, score: Score) -> bool:
    """Run the command; return whether it was killed."""
    going_on = (target.folder / "out.partial" / JOURNAL_FILE).exists()
    if isinstance(by, float):
        killed = _killed_in_its_own_interpreter(target, by)
    else:
        pause = by.pause if by is not None else 0.0
        files = by or KillAt(None, exchanges=target.exchanges)
        after = random.random() * target.calls * pause * 1.5 if pause else None
        # Alone in its process, a merge makes its calls in the order in which they were counted.
        arguments = target.arguments(1 if files.number is not None else 2)
        ended = forked(command_line(target.folder, arguments, files), target.folder / "said", kill_after=after)
        assert ended.killed or ended.code == 0, ended.said
        killed = ended.killed
    if killed:
        score.last = phase(target)
        score.phases[score.last] += 1
    elif going_on:
        score.resumed += 1
    return killed


def _killed_in_its_own_interpreter(target: Victim, after: float) -> bool:
    working = target.folder / "working"
    working.unlink(missing_ok=True)
    command = [sys.executable, "-c", _PROGRAM, *target.arguments(2)]
    process = subprocess.Popen(command, cwd=target.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not working.exists():
        time.sleep(0.01)
    time.sleep(after)
    process.kill()
    assert process.wait() in (0, -signal.SIGKILL)
    return process.returncode != 0


def phase(target: Victim) -> str:
    """Say how far a merge had come."""
    partial = target.folder / "out.partial"
    if target.out.exists() and shown(target.out) == target.wanted:
        return "after the commit"
    if (partial / "SHA256SUMS").exists():
        return "about to commit"
    if (partial / "merge_manifest.json").exists() or (partial / "README.md").exists():
        return "writing what stands beside the weights"
    past = read_journal(partial / JOURNAL_FILE) if partial.exists() else None
    if past is None:
        return "before the journal"
    return "merging" if past.records else "measuring, or before the first record"


def _check(target: Victim) -> None:
    if target.old is None:
        assert not target.out.exists() or shown(target.out) == target.wanted, "neither absent nor complete"
    elif not target.exchanges and not target.out.exists():
        # Two renames cannot be one; the next run puts it back.
        assert shown(target.folder / "out.replaced") == target.old, "the older output is gone"
    else:
        assert target.out.exists(), "the older output is gone, and the new one is not there"
        assert shown(target.out) in (target.old, target.wanted), "neither the older output nor the new one"


def moments(target: Victim, source: random.Random, turn: int) -> Iterator[KillAt | float]:
    """Yield with what to kill a merge, one after the other."""
    if turn % 10 == 9:
        yield source.random() * 0.6
    for _ in range(source.choice((1, 1, 2, 3))):
        kind = source.random()
        if kind < 0.4:
            yield KillAt(None, pause=0.001)
        elif kind < 0.7:
            # A run that goes on makes fewer calls: counted from the start it would seldom come to the commit.
            yield KillAt(source.randrange(target.commit - _LAST_CALLS, target.calls), after=source.random() < 0.5)
        else:
            yield KillAt(source.randrange(target.calls), after=source.random() < 0.5)


def run_all(work: Path, kills: int, seed: int, names: tuple[str, ...] = tuple(RECIPES)) -> Score:
    """Kill merges of every method, onto nothing and onto an older output, until enough were killed."""
    source, score = random.Random(seed), Score()
    random.seed(seed)
    write_models(work)
    inputs = {path.name: digest(path) for path in sorted(work.iterdir())}
    victims = [victim(work, name, replaces=replaces) for name in names for replaces in (False, True)]
    turn = 0
    while score.phases.total() < kills:
        target = victims[turn % len(victims)]
        try:
            kill_until_done(target, moments(target, source, turn), score)
        except BaseException as error:
            error.add_note(f"{target.name}, {'with' if target.old else 'without'} --force, turn {turn}, seed {seed}")
            raise
        turn += 1
        assert inputs == {name: digest(work / name) for name in inputs}, "an input was changed"
    return score


def sweep(work: Path, name: str, last: int | None = None) -> Score:
    """Kill a merge before and after each call that it makes, or the last of them, onto nothing and an older output."""
    score = Score()
    write_models(work)
    for replaces, exchanges in ((False, True), (True, True), (True, False)):
        target = replace(victim(work, name, replaces=replaces), exchanges=exchanges)
        for number in range(0 if last is None else target.calls - last, target.calls):
            for after in (False, True):
                try:
                    kill_until_done(target, iter([KillAt(number, after=after, exchanges=exchanges)]), score)
                except BaseException as error:
                    error.add_note(f"{'after' if after else 'before'} call {number}; {replaces=}, {exchanges=}")
                    raise
                left = {path.name for path in work.iterdir() if path.name.startswith("out.")}
                assert not left, f"left behind: {left}"
    return score


def main() -> int:
    """Kill, check, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kills", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", choices=list(RECIPES), help="kill this one at every call instead")
    parser.add_argument("--last", type=int, help="of those calls only the last so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kills-") as work:
        found = Path(work)
        score = (
            sweep(found, options.sweep, options.last) if options.sweep else run_all(found, options.kills, options.seed)
        )
    print(f"{score.phases.total()} kills, {score.merges} merges came out the same, {score.resumed} of them resumed")
    for name, count in score.phases.most_common():
        print(f"  {count:4} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
