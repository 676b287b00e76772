"""How a merge goes when nothing is in the page cache and the output must reach the disk (Linux).

    python -m tests.benchmarks.cold DIR [--method linear] [--runs 1] [--threads N] [--json]

DIR is a family that ``checkpoints`` made; for more than fits in memory:

    python -m tests.benchmarks.checkpoints DIR --size 7b --fine-tunes 1

Every checkpoint of it is merged (of ``slerp`` two), the base as one more model where the method reads no base. Each
run drops the inputs from the page cache, reads the largest of their files with one reader to see what the disk does
just then, drops that too, and starts a whole merge-cli process, fsync included. The output is made in DIR and removed.
Python and torch themselves stay in the cache.

* ``inputs cached before``: what of the inputs the kernel kept all the same
* ``from disk``: what the kernel counts as read for the process; less than the inputs means that they were not cold
* ``inputs cached after``, ``output cached after``: what the merge left in the page cache; much, where all of it fits
* ``machine's cache``: all that is cached on the machine; it falls where the merge drives out what others had there

What is cached is what ``fincore`` of util-linux says. It asks mincore(2), which tells the truth only about files that
one may write.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import CASES, Case, Family
from tests.benchmarks.measuring import (
    Run,
    describe,
    machine,
    megabytes,
    merge_cli,
    remove,
    run,
    say,
    scratch_folder,
    size_of,
    table,
    weight_files,
)

METHODS = [name for name, case in CASES.items() if not case.fishers]
_READ_BYTES = 4 * 2**20


@dataclass(frozen=True)
class BaseAsModel(Family):
    """A family whose base is the first of the models, so that a merge that reads no base reads all of it too."""

    @property
    def models(self) -> list[Path]:
        """The base and the fine-tunes."""
        return [self.base, *super().models]


@dataclass(frozen=True)
class Cold:
    """One run and what was cached around it; sizes in bytes.

    Attributes:
        disk_rate: Bytes per second that one reader got from the disk just before.
        cached_before: What of the inputs was in the page cache when the merge began.
        run: The merge.
        merging_seconds: What of it merge-cli itself reports: start-up apart.
        input_bytes: The weights read.
        output_bytes: The weights written.
        inputs_cached: What of the inputs was in the page cache afterwards.
        output_cached: What of the output was.
        machine_before: The page cache of the machine when the merge began.
        machine_after: The page cache of the machine afterwards.
    """

    disk_rate: float
    cached_before: int
    run: Run
    merging_seconds: float
    input_bytes: int
    output_bytes: int
    inputs_cached: int
    output_cached: int
    machine_before: int
    machine_after: int

    @property
    def rate(self) -> float:
        """Bytes read and written per second of wall time."""
        return (self.input_bytes + self.output_bytes) / self.run.seconds

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            **self.run.to_json(),
            "merging_seconds": self.merging_seconds,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "bytes_per_second": self.rate,
            "disk_bytes_per_second": self.disk_rate,
            "inputs_cached_before_bytes": self.cached_before,
            "inputs_cached_after_bytes": self.inputs_cached,
            "output_cached_after_bytes": self.output_cached,
            "machine_cached_before_bytes": self.machine_before,
            "machine_cached_after_bytes": self.machine_after,
        }


def everything(folder: Path, case: Case) -> Family:
    """Return the family in a folder as a case merges all of it.

    Raises:
        SystemExit: If there is no base or no fine-tune.
    """
    fine_tunes = next(count for count in itertools.count() if not (folder / f"ft{count + 1}").is_dir())
    if not fine_tunes or not (folder / "base").is_dir():
        raise SystemExit(f"{folder} holds no base or no ft1; make them with tests.benchmarks.checkpoints")
    return Family(folder, fine_tunes) if case.base else BaseAsModel(folder, fine_tunes)


def files_of(checkpoints: Sequence[Path]) -> list[Path]:
    """Return every file of some checkpoints, weights or not."""
    return sorted(file for checkpoint in checkpoints for file in checkpoint.rglob("*") if file.is_file())


def drop(files: Sequence[Path]) -> None:
    """Ask the kernel to forget files, which are on the disk first: it keeps what is yet to be written."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def cached_bytes(files: Sequence[Path]) -> int:
    """Return how much of some files is in the page cache; the page at the end counts as far as the file goes."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, files)]
    resident = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return sum(min(int(found), file.stat().st_size) for found, file in zip(resident, files, strict=True))


def read_rate(file: Path) -> float:
    """Return the bytes per second at which a file is read from its start to its end, 4 MiB a call."""
    piece = bytearray(_READ_BYTES)
    began = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(piece):
            pass
    return file.stat().st_size / (time.perf_counter() - began)


def memory(name: str) -> int:
    """Return a line of /proc/meminfo, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/meminfo has no {name}")


def measure(case: Case, family: Family, flags: Sequence[str]) -> Cold:
    """Empty the cache of the inputs, measure the disk, empty it again and merge."""
    checkpoints = case.inputs(family)
    inputs = files_of(checkpoints)
    weights = [file for checkpoint in checkpoints for file in weight_files(checkpoint)]
    drop(inputs)
    disk_rate = read_rate(max(weights, key=lambda file: file.stat().st_size))
    drop(inputs)
    with scratch_folder(family.folder) as scratch:
        recipe, out = case.write(scratch / "recipe.yml", family), scratch / "out"
        before = cached_bytes(inputs), memory("Cached")
        done = run([merge_cli(), "merge", recipe, out, "--json", *flags], look_every=1)
        after = cached_bytes(inputs), cached_bytes(files_of([out])), memory("Cached")
        merging = json.loads(done.output)["seconds"]
        sizes = size_of(weights), size_of(weight_files(out))
        remove(out)
    found = Cold(disk_rate, before[0], done, merging, *sizes, after[0], after[1], before[1], after[2])
    say(f"{done.seconds:.2f} s, {gigabytes(found.rate)} GB/s, disk {gigabytes(disk_rate)} GB/s")
    return found


def gigabytes(size: float) -> str:
    """Write a number of bytes in thousands of millions."""
    return f"{size / 1e9:.2f}"


def rows(found: Sequence[Cold]) -> list[list[str]]:
    """Return the table's rows: one for each figure, one column for each run."""
    figures = {
        "disk, one reader: GB/s": [gigabytes(each.disk_rate) for each in found],
        "inputs cached before: MB": [megabytes(each.cached_before) for each in found],
        "whole process: s": [f"{each.run.seconds:.2f}" for each in found],
        "merging: s": [f"{each.merging_seconds:.2f}" for each in found],
        "peak memory: MB": [megabytes(each.run.peak_bytes) for each in found],
        "weights read: MB": [megabytes(each.input_bytes) for each in found],
        "weights written: MB": [megabytes(each.output_bytes) for each in found],
        "read and written: GB/s": [gigabytes(each.rate) for each in found],
        "from disk: MB": [megabytes(each.run.disk_read_bytes) for each in found],
        "to disk: MB": [megabytes(each.run.disk_written_bytes) for each in found],
        "inputs cached after: MB": [megabytes(each.inputs_cached) for each in found],
        "output cached after: MB": [megabytes(each.output_cached) for each in found],
        "machine's cache before: MB": [megabytes(each.machine_before) for each in found],
        "machine's cache after: MB": [megabytes(each.machine_after) for each in found],
    }
    return [[name, *cells] for name, cells in figures.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the family")
    parser.add_argument("--method", choices=METHODS, default="linear")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, help="as merge-cli's own")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    if shutil.which("fincore") is None:
        raise SystemExit("fincore is not to be found; it belongs to util-linux, and this benchmark to Linux")

    case = CASES[options.method]
    family = everything(options.folder.resolve(), case)
    flags = ["--threads", str(options.threads)] if options.threads else []
    facts = machine()
    found = [measure(case, family, flags) for _ in range(options.runs)]
    about = {"method": options.method, "threads": options.threads, "checkpoints": len(case.inputs(family))}
    total = memory("MemTotal")
    if options.json:
        runs = [each.to_json() for each in found]
        print(json.dumps({"machine": facts, **about, "memory_total_bytes": total, "runs": runs}, indent=1))
        return
    print(table((options.method, *(f"run {number + 1}" for number in range(options.runs))), rows(found)), end="\n\n")
    print(f"{about['checkpoints']} checkpoints, {megabytes(total)} MB of memory (MemTotal); {describe(facts)}")


if __name__ == "__main__":
    main()
