"""How seconds and peak memory grow: with size, with models, with threads, with the number of tensors.

    python -m tests.benchmarks.scaling [--series sizes models threads tensors] [--method linear] [--runs 3]

Whole merge-cli processes on synthetic checkpoints, which are made in ``--work`` where they are missing (all four series
keep 30 GB there), without fsync, page cache warm: each point is run once to warm up and to look at its memory, then
``--runs`` times to take its time.

* sizes: 60m to 1.5b, three models
* models: 2 to 16 of 60m
* threads: 1, 2, 4, ... to one per processor, three models of ``--threads-size``
* tensors: 100 to 100,000 of 1,024 elements, three models; ``each`` is what one more tensor costs since the point before

``merging`` is what merge-cli itself reports: from the first byte read to the committed output, start-up apart.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import CASES, Family
from tests.benchmarks.measuring import (
    DEFAULT_WORK,
    OFTEN,
    Run,
    describe,
    machine,
    median,
    megabytes,
    merge_cli,
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

SERIES = ("sizes", "models", "threads", "tensors")
# Cases that need no Fishers, which would treble what is kept on disk.
METHODS = [name for name, case in CASES.items() if not case.fishers and case.most is None]


@dataclass(frozen=True)
class Point:
    """One merge of a series: ``value`` is where it stands on the series' axis."""

    series: str
    value: str
    family: Family
    shape: tuple[str, ...]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured at a point; sizes in bytes, durations in seconds."""

    point: Point
    nbytes: int
    peak: int
    runs: list[Run]
    merging_seconds: list[float]

    @property
    def seconds(self) -> list[float]:
        """Wall time of the runs."""
        return [run.seconds for run in self.runs]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "value": self.point.value,
            "input_and_output_bytes": self.nbytes,
            "median_seconds": median(self.seconds),
            "merging_seconds": self.merging_seconds,
            "peak_bytes": self.peak,
            "runs": [run.to_json() for run in self.runs],
        }


def points(options: argparse.Namespace) -> Iterator[Point]:
    """Yield what is to be measured."""
    work = options.work.resolve()
    if "sizes" in options.series:
        for size in options.sizes:
            yield Point("sizes", size, Family(work / size, 3), ("--size", size))
    if "models" in options.series:
        for count in options.models:
            yield Point("models", str(count), Family(work / "60m", count), ("--size", "60m"))
    if "threads" in options.series:
        size = options.threads_size
        for threads in thread_counts(len(os.sched_getaffinity(0))):
            flags = ("--threads", str(threads))
            yield Point("threads", str(threads), Family(work / size, 3), ("--size", size), flags)
    if "tensors" in options.series:
        for count in options.tensors:
            family = Family(work / f"small-{count}", 3)
            yield Point("tensors", str(count), family, ("--small-tensors", str(count)))


def thread_counts(most: int) -> list[int]:
    """Return the powers of two below ``most``, and ``most``."""
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]


def measure(point: Point, method: str, runs: int, work: Path) -> Measured:
    """Make the checkpoints of a point and run its merge."""
    family = point.family.make(*point.shape)
    case = CASES[method]
    done: list[Run] = []
    with scratch_folder(work) as scratch:
        recipe, out = case.write(scratch / "recipe.yml", family), scratch / "out"
        for number in range(runs + 1):
            remove(out)
            # The first run warms up, and is the one whose memory is looked at: looking takes time.
            command = [merge_cli(), "merge", recipe, out, "--no-fsync", "--json", *point.flags]
            done.append(run(command, look_every=None if number else OFTEN))
        files = [file for checkpoint in (*case.inputs(family), out) for file in weight_files(checkpoint)]
        nbytes = size_of(files)
    warm_up, *done = done
    found = Measured(point, nbytes, warm_up.peak_bytes, done, [json.loads(each.output)["seconds"] for each in done])
    say(f"{point.series} {point.value}: {spread(found.seconds)} s, {megabytes(found.peak)} MB")
    return found


def rows(found: list[Measured]) -> list[list[str]]:
    """Return the rows of one series' table; the last cell compares a point with the one before."""
    lines = []
    for before, each in zip([None, *found], found, strict=False):
        lines.append(
            [
                each.point.value,
                spread(each.seconds),
                f"{median(each.merging_seconds):.3f}",
                f"{each.nbytes / 1e6 / median(each.merging_seconds):,.0f}",
                megabytes(each.peak),
                per_tensor(before, each) if before and each.point.series == "tensors" else "",
            ]
        )
    return lines


def per_tensor(before: Measured, after: Measured) -> str:
    """Return what one more tensor costs of the whole process, in microseconds."""
    more = int(after.point.shape[1]) - int(before.point.shape[1])
    return f"{(median(after.seconds) - median(before.seconds)) / more * 1e6:.0f} µs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=SERIES, default=SERIES)
    parser.add_argument("--method", choices=METHODS, default="linear")
    parser.add_argument("--runs", type=int, default=3, help="runs that count, per point")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["60m", "0.2b", "0.5b", "1.5b"], metavar="SIZE")
    parser.add_argument("--models", nargs="+", type=int, default=[2, 4, 8, 16], metavar="COUNT")
    parser.add_argument("--tensors", nargs="+", type=int, default=[100, 1000, 10_000, 100_000], metavar="COUNT")
    parser.add_argument("--threads-size", choices=SIZES, default="0.5b")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder to keep checkpoints in")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()

    facts = machine()
    found: dict[str, list[Measured]] = {}
    for point in points(options):
        found.setdefault(point.series, []).append(measure(point, options.method, options.runs, options.work.resolve()))
    if options.json:
        series = {name: [each.to_json() for each in measured] for name, measured in found.items()}
        print(
            json.dumps({"machine": facts, "method": options.method, "runs": options.runs, "series": series}, indent=1)
        )
        return
    for name, measured in found.items():
        print(table((name, "seconds", "merging s", "MB/s merging", "peak MB", "each"), rows(measured)), end="\n\n")
    print(f"{options.method}, {options.runs} runs; {describe(facts)}")


if __name__ == "__main__":
    main()
