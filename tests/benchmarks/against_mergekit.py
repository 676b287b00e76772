"""merge-cli beside mergekit: whole processes, in turn, on the same checkpoints and the same recipes.

    python -m tests.benchmarks.against_mergekit [--size 0.5b] [--fine-tunes 3] [--runs 3] [--methods linear ties ...]

Checkpoints and mergekit's virtual environment are made in ``--work`` where they are missing. Every method is run once
by each tool to warm up, which also fills the page cache, then ``--runs`` times by each in alternation; outputs are
removed in between. Seconds are wall time from start to end of the process. Peak memory is that of the first run, which
is not timed: what all processes of a tool take together is looked at 50 times a second, and looking takes time.

* merge-cli runs as ``merge-cli merge RECIPE OUT --no-fsync --json``: mergekit does not wait for the device either.
* mergekit runs as ``mergekit-yaml RECIPE OUT``, all flags at their defaults. The checkpoints carry a small tokenizer,
  which both tools copy. Neither may use the network.
* The floor is ``cat`` of the files read to /dev/null and ``cp`` of the output, measured in each run too.
* GB/s counts input and output bytes once each, however often a method reads its inputs.
* ``merging`` is what merge-cli itself reports: from the first byte read to the committed output, start-up apart.

Recipes mean the same to both tools, except that merge-cli's DARE rescales by 1 / density, as the paper does, and
mergekit's so that norms stay; ``dare_linear_l1`` and ``dare_ties_l1`` have merge-cli do as mergekit does. mergekit
computes in bfloat16, the dtype asked for; merge-cli in float32 always.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import peer
from tests.benchmarks.cases import CASES, DEFAULT_CASES, Case, Family, needs_fishers
from tests.benchmarks.measuring import (
    DEFAULT_WORK,
    OFTEN,
    Run,
    describe,
    floor_seconds,
    machine,
    median,
    megabytes,
    merge_cli,
    named,
    remove,
    run,
    say,
    scratch_folder,
    size_of,
    spread,
    table,
    weight_files,
)
from tests.benchmarks.shapes import SIZES

OURS, THEIRS = "merge-cli", "mergekit"


@dataclass
class Comparison:
    """What was measured of one method.

    Attributes:
        name: Of the case.
        input_bytes: Size of the weight files read.
        output_bytes: Size of the weight files written.
        peaks: Tool -> its peak memory in bytes.
        runs: Tool -> its runs.
        merging_seconds: Of merge-cli's runs, without start-up.
        floor: Seconds of the floor, one per run.
    """

    name: str
    input_bytes: int
    output_bytes: int = 0
    peaks: dict[str, int] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    merging_seconds: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    def seconds(self, tool: str) -> list[float]:
        """Return the seconds of a tool's runs."""
        return [run.seconds for run in self.runs[tool]]

    def ratios(self) -> tuple[float, float] | None:
        """Return how many times faster merge-cli is, and how many times less memory it takes; None without a peer."""
        if THEIRS not in self.runs:
            return None
        seconds = median(self.seconds(THEIRS)) / median(self.seconds(OURS))
        return seconds, self.peaks[THEIRS] / self.peaks[OURS]

    @property
    def rate(self) -> float:
        """Bytes read and written per second of merge-cli's whole process."""
        return (self.input_bytes + self.output_bytes) / median(self.seconds(OURS))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        ratios = self.ratios()
        return {
            "method": self.name,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "runs": {tool: [run.to_json() for run in runs] for tool, runs in self.runs.items()},
            "median_seconds": {tool: median(self.seconds(tool)) for tool in self.runs},
            "peak_bytes": self.peaks,
            "bytes_per_second": self.rate,
            "merging_seconds": self.merging_seconds,
            "floor_seconds": self.floor,
            "times_faster": ratios and ratios[0],
            "times_less_memory": ratios and ratios[1],
        }


def compare(name: str, family: Family, mergekit: Path | None, runs: int, scratch: Path) -> Comparison:
    """Measure one case.

    Args:
        name: Of the case.
        family: Of the checkpoints.
        mergekit: Path of ``mergekit-yaml``, None to leave it out.
        runs: How often each tool is run, after once to warm up.
        scratch: Folder for recipes and outputs.
    """
    case = CASES[name]
    inputs = [file for checkpoint in case.inputs(family) for file in weight_files(checkpoint)]
    out = scratch / "out"
    commands = _commands(case, family, mergekit, scratch, out)
    found = Comparison(name, size_of(inputs), runs={tool: [] for tool in commands})
    for number in range(runs + 1):
        for tool, command in commands.items():
            measured = run(command, look_every=None if number else OFTEN)
            if number:
                found.runs[tool].append(measured)
                say(f"{name}: {tool} {measured.seconds:.2f} s")
            else:
                found.peaks[tool] = measured.peak_bytes
                say(f"{name}: {tool} {megabytes(measured.peak_bytes)} MB")
            if number and tool == OURS:
                outputs = weight_files(out)
                found.output_bytes = size_of(outputs)
                found.merging_seconds.append(json.loads(measured.output)["seconds"])
                found.floor.append(floor_seconds(inputs, outputs, scratch / "copy"))
            remove(out)
    return found


def _commands(
    case: Case, family: Family, mergekit: Path | None, scratch: Path, out: Path
) -> dict[str, list[Path | str]]:
    recipe = case.write(scratch / "recipe.yml", family)
    commands: dict[str, list[Path | str]] = {OURS: [merge_cli(), "merge", recipe, out, "--no-fsync", "--json"]}
    if mergekit is not None and case.peer:
        theirs = case.write(scratch / "recipe-mergekit.yml", family, for_peer=True)
        commands[THEIRS] = [mergekit, theirs, out]
    return commands


def start_up(family: Family, runs: int, scratch: Path) -> dict[str, list[float]]:
    """Measure what merge-cli takes before any work, in seconds.

    That is ``--help``, ``plan`` of task arithmetic, and the least that a program can take that uses torch: to import it
    with garbage collection off, and to end without taking the interpreter apart.
    """
    recipe = CASES["task_arithmetic"].write(scratch / "recipe.yml", family)
    commands: dict[str, list[Path | str]] = {
        "--help": [merge_cli(), "--help"],
        "plan": [merge_cli(), "plan", recipe],
        "import torch": [sys.executable, "-c", "import gc, os; gc.disable(); import torch; os._exit(0)"],
    }
    for command in commands.values():
        run(command)
    return {name: [run(command).seconds for _ in range(runs)] for name, command in commands.items()}


def rows(found: list[Comparison]) -> list[list[str]]:
    """Return the rows of the table that :func:`main` prints."""
    lines = []
    for each in found:
        ratios = each.ratios()
        theirs = [spread(each.seconds(THEIRS)), megabytes(each.peaks[THEIRS])] if ratios else ["", ""]
        times = [f"{ratio:.1f}x" for ratio in ratios] if ratios else ["", ""]
        lines.append(
            [
                each.name,
                spread(each.seconds(OURS)),
                theirs[0],
                times[0],
                megabytes(each.peaks[OURS]),
                theirs[1],
                times[1],
                f"{each.rate / 1e9:.2f}",
                f"{median(each.merging_seconds):.2f}",
                f"{median(each.floor):.2f}",
            ]
        )
    return lines


HEADINGS = (
    "method", "merge-cli s", "mergekit s", "faster", "merge-cli MB", "mergekit MB", "less memory", "GB/s", "merging s",
    "floor s",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--fine-tunes", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="runs that count, per tool and method")
    parser.add_argument("--methods", nargs="+", choices=CASES, default=DEFAULT_CASES, metavar="METHOD",
                        help=f"of {', '.join(CASES)}; default: all but the last two")  # fmt: skip
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder to keep checkpoints and mergekit in")
    parser.add_argument("--no-peer", action="store_true", help="merge-cli alone")
    parser.add_argument("--peer-packages", nargs="+", default=peer.PACKAGES, metavar="PACKAGE",
                        help=f"what pip installs, the first alone; default: {' '.join(peer.PACKAGES)}")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()

    facts = machine()
    work = options.work.resolve()
    mergekit = None if options.no_peer else peer.install(work / "mergekit", options.peer_packages)
    family = Family(work / options.size, options.fine_tunes, needs_fishers(options.methods))
    family.make("--size", options.size)
    with scratch_folder(work) as scratch:
        starting = start_up(family, options.runs, scratch)
        found = [compare(name, family, mergekit, options.runs, scratch) for name in options.methods]
    if options.json:
        content = {
            "machine": facts,
            "peer": mergekit and peer.versions(mergekit),
            "size": options.size,
            "fine_tunes": options.fine_tunes,
            "runs": options.runs,
            "start_up_seconds": starting,
            "methods": [each.to_json() for each in found],
        }
        print(json.dumps(content, indent=1))
        return
    print(table(HEADINGS, rows(found)))
    print(f"\nstart-up: {', '.join(f'{name} {spread(seconds)} s' for name, seconds in starting.items())}")
    print(f"{options.size}, {options.fine_tunes} fine-tunes, {options.runs} runs; {describe(facts)}")
    if mergekit is not None:
        print(f"against {named(peer.versions(mergekit))}")


if __name__ == "__main__":
    main()
