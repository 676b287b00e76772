"""Measuring whole processes: seconds, peak memory, the floor under both, and the machine that it was done on.

Linux counts the peak memory of the process that starts another towards that other's, since both are one until exec. So
nothing here imports torch, and whatever needs it (making checkpoints) runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_WORK = Path(tempfile.gettempdir()) / "merge-cli-benchmarks"
# Seconds between two looks at the memory of a process that is not timed.
OFTEN = 0.02
_BLOCK = 512  # The unit of Linux's counts of blocks, whatever the disk's own is.


@dataclass(frozen=True)
class Run:
    """One process, from start to end.

    Attributes:
        began: When it was started, in seconds of ``time.perf_counter``, which processes of a machine share.
        ended: When it was gone.
        cpu_seconds: Processor time, over all its threads.
        peak_bytes: Largest resident set of one process; where it was looked for and is more, what a program and those
            that it started took of the memory together, a page that several have counted once (Linux).
        disk_read_bytes: What had to come from a disk, not from the page cache (Linux; other systems count calls).
        disk_written_bytes: What it wrote that is bound for a disk (Linux, likewise).
        output: What it printed, empty where that was not kept.
    """

    began: float
    ended: float
    cpu_seconds: float
    peak_bytes: int
    disk_read_bytes: int
    disk_written_bytes: int
    output: str

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.ended - self.began

    def to_json(self) -> dict[str, float]:
        """Return the figures as plain data."""
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_bytes": self.peak_bytes,
            "disk_read_bytes": self.disk_read_bytes,
            "disk_written_bytes": self.disk_written_bytes,
        }


def run(command: Sequence[str | Path], *, keep_output: bool = True, look_every: float | None = None) -> Run:
    """Run a command to its end and measure it.

    Args:
        command: The command.
        keep_output: Whether to return what it prints.
        look_every: Seconds after which to look again at what it takes together with the processes that it starts. A
            look takes some ten milliseconds of a processor for each process, so a run that is timed is not looked at.

    Raises:
        SystemExit: If it fails; shows the end of what it said.
    """
    # Neither tool may wait for the network. A merge of local files needs none.
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile())
        errors = stack.enter_context(tempfile.TemporaryFile())
        output = said if keep_output else subprocess.DEVNULL
        began = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=errors, env=environment,
                                   cwd=ROOT)  # fmt: skip
        with _watched(process.pid, look_every) as together:
            _, status, usage = os.wait4(process.pid, 0)
        ended = time.perf_counter()
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = [_text(said), _text(errors)]
    if process.returncode:
        raise SystemExit(f"{shlex.join(process.args)} ended with {process.returncode}:\n{''.join(texts)[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    disk = (usage.ru_inblock * _BLOCK, usage.ru_oublock * _BLOCK)
    peak = max([usage.ru_maxrss * unit, *together])
    return Run(began, ended, usage.ru_utime + usage.ru_stime, peak, *disk, texts[0])


@contextlib.contextmanager
def _watched(pid: int, look_every: float | None) -> Iterator[list[int]]:
    """Yield a list that collects what a process and its children take together, for as long as it has children."""
    seen: list[int] = []
    if look_every is None:
        yield seen
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(look_every):
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if children:
                    seen.append(sum(_share(each) for each in (pid, *children)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def _share(pid: int | str) -> int:
    """Return a process's memory, of what it shares its part: the proportional set size; 0 for one that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def floor_seconds(inputs: Sequence[Path], outputs: Sequence[Path], scratch: Path) -> float:
    """Return the seconds that it takes to ``cat`` the inputs to /dev/null and to ``cp`` the outputs into a folder."""
    scratch.mkdir()
    try:
        read = run(["cat", *inputs], keep_output=False)
        written = run(["cp", *outputs, scratch])
    finally:
        remove(scratch)
    return read.seconds + written.seconds


def weight_files(checkpoint: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint."""
    return sorted(checkpoint.glob("*.safetensors"))


def size_of(files: Sequence[Path]) -> int:
    """Return how many bytes files have together."""
    return sum(file.stat().st_size for file in files)


def remove(folder: Path) -> None:
    """Remove a folder if it is there; by a process of its own, so that nothing is left to do when that returns."""
    subprocess.run(["rm", "-rf", folder], check=True)


@contextlib.contextmanager
def scratch_folder(work: Path) -> Iterator[Path]:
    """Yield a new folder inside ``work``, on the disk of the checkpoints, and remove it."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="scratch-") as folder:
        yield Path(folder)


def merge_cli() -> Path:
    """Return the command line of the environment in use.

    Raises:
        SystemExit: If merge-cli is not installed in it.
    """
    found = Path(sys.executable).with_name("merge-cli")
    if not found.exists():
        raise SystemExit(f"{found} does not exist; install this project into the environment of {sys.executable}")
    return found


def machine() -> dict[str, object]:
    """Return what a reader must know of the machine, the date and the versions to place the figures."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("merge-cli-nn", "torch", "numpy")},
        },
    }


def describe(facts: Mapping[str, object]) -> str:
    """Return the machine's facts as one line."""
    versions = facts["versions"]
    assert isinstance(versions, dict)
    memory = f"{float(str(facts['memory_bytes'])) / 2**30:.0f} GiB"
    return (
        f"{facts['date']}; {facts['processor']}, {facts['cores']} cores, {memory}, load {facts['load_before']:.1f} "
        f"before; {facts['system']}; {named(versions)}"
    )


def named(versions: Mapping[str, str]) -> str:
    """Write versions the way people say them."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Write the median of some seconds, with the least and the most of them."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def megabytes(size: float) -> str:
    """Write a number of bytes in millions, so that a column of them compares at a glance."""
    return f"{size / 1e6:,.0f}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(map(line, (headings, rule, *rows)))


def say(text: str) -> None:
    """Tell how it goes, on standard error."""
    print(text, file=sys.stderr, flush=True)
