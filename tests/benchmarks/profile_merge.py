"""Where a merge's time goes, phase by phase.

    python -m tests.benchmarks.profile_merge RECIPE [--threads N] [--memory 512MiB] [--json]

Runs the merge in a process of its own, without fsync, once to warm the page cache and once to measure. Its workers are
threads, which can be watched, where the command line's are processes; --threads 1 shows what the work itself takes.
Functions of merge_cli are wrapped from outside; a region's time is what passes in it less what passes in
wrapped functions that it calls, so the phases of a thread add up to its life.

* start-up: the interpreter, and importing what a merge imports
* plan: reading recipe and headers, deciding
* read, write: in the system's calls (write includes reserving space)
* convert: to float32 and back, deltas, checks for NaN
* measure, compute: in the method's own functions and those of the steps before it
* journal: noting finished ranges
* look: the sample on which warnings rest
* hash: SHA-256 of the output; reading it back counts as read
* wait: for work, for a lock of Python's ``threading``, or for other threads to end
* rest: everything else: cutting into jobs, opening files, writing the small ones
* exit: from the last line of the program to its end

Wall time of a phase is summed over threads; where processor time is less, the thread was kept waiting. A function that
is no longer there is named on standard error, and its time counts as ``rest``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.benchmarks.measuring import (
    DEFAULT_WORK,
    OFTEN,
    describe,
    machine,
    megabytes,
    run,
    say,
    scratch_folder,
    table,
)

if TYPE_CHECKING:
    pass

PHASES = (
    *("start-up", "plan", "read", "convert", "measure", "compute", "write", "hash", "journal", "look", "wait", "rest"),
    "exit",
)

# Module, function in it, phase.
SEAMS = (
    ("merge_cli.checkpoint.files", "Files.pread", "read"),
    ("merge_cli.checkpoint.files", "Files.pwrite", "write"),
    ("merge_cli.checkpoint.files", "Files.reserve", "write"),
    ("merge_cli.stream.block_inputs", "BlockInputs.load", "convert"),
    ("merge_cli.stream.worker", "Worker.copy", "convert"),
    ("merge_cli.stream.worker", "Worker.write", "convert"),
    ("merge_cli.stream.digests", "_advance", "hash"),
    ("merge_cli.checkpoint.files", "Files.sync", "write"),
    ("merge_cli.stream.journal", "Journal.record", "journal"),
    ("merge_cli.stream.model_similarity", "examine", "look"),
    ("threading", "Condition.wait", "wait"),
    ("threading", "Thread.join", "wait"),
    ("threading", "Thread.run", "rest"),
)


@dataclass
class Spent:
    """Time of one phase on one thread, in seconds, and how often it was entered."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    calls: int = 0

    def add(self, other: Spent) -> None:
        """Add another thread's."""
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.calls += other.calls


@dataclass
class Clock:
    """Knows for every thread in which phase it is, and what it spent in each."""

    threads: list[tuple[str, dict[str, Spent]]] = field(default_factory=list)
    local: threading.local = field(default_factory=threading.local)

    def region(self, phase: str) -> Region:
        """Return a context in which this thread is in ``phase``."""
        return Region(self, phase)

    def mine(self) -> tuple[list[Region], dict[str, Spent]]:
        """Return the regions that this thread is in, and what it spent."""
        if not hasattr(self.local, "mine"):
            spent: dict[str, Spent] = {}
            self.local.mine = ([], spent)
            role = "main" if threading.current_thread() is threading.main_thread() else "workers"
            self.threads.append((role, spent))
        found: tuple[list[Region], dict[str, Spent]] = self.local.mine
        return found

    def wrapped(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """Return the function, its time counted to ``phase``."""

        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            with self.region(phase):
                return function(*arguments, **named)

        return wrapper

    def totals(self) -> dict[str, dict[str, Spent]]:
        """Return phase -> role (main or workers) -> what was spent."""
        totals = {phase: {"main": Spent(), "workers": Spent()} for phase in PHASES}
        for role, spent in self.threads:
            for phase, each in spent.items():
                totals[phase][role].add(each)
        return totals


class Region:
    """A stretch of a thread's life in one phase, interrupted by those inside it."""

    def __init__(self, clock: Clock, phase: str) -> None:
        self._phase = phase
        self._open, self._spent = clock.mine()

    def __enter__(self) -> None:
        self._inner, self._inner_cpu = 0.0, 0.0
        self._open.append(self)
        self._began, self._began_cpu = time.perf_counter(), time.thread_time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        seconds, cpu_seconds = time.perf_counter() - self._began, time.thread_time() - self._began_cpu
        self._open.pop()
        spent = self._spent.setdefault(self._phase, Spent())
        spent.add(Spent(seconds - self._inner, cpu_seconds - self._inner_cpu, 1))
        if self._open:
            self._open[-1]._inner += seconds
            self._open[-1]._inner_cpu += cpu_seconds


@contextlib.contextmanager
def wrapping(clock: Clock, method: str, steps: list[str]) -> Iterator[list[str]]:
    """Wrap the seams, a method and steps; yield the names of the functions that were not found."""
    missing = []
    with contextlib.ExitStack() as stack:
        for module, path, phase in SEAMS:
            *owners, name = path.split(".")
            owner = functools.reduce(lambda at, part: getattr(at, part, None), owners, importlib.import_module(module))
            function = getattr(owner, name, None)
            if function is None:
                missing.append(f"{module}.{path}")
                continue
            stack.enter_context(mock.patch.object(owner, name, clock.wrapped(function, phase)))
        _wrap_method(clock, method, steps, stack)
        yield missing


def _wrap_method(clock: Clock, method: str, steps: list[str], stack: contextlib.ExitStack) -> None:
    """Wrap what a method and steps do where everybody finds them: in their modules."""
    from merge_cli.methods import find_method

    def measured(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def measure(params: Any) -> Any:
            found = of(params)
            names = ("start", "fold", "combine", "finish")
            return found and replace(found, **{name: clock.wrapped(getattr(found, name), "measure") for name in names})

        return measure

    module: Any = importlib.import_module(f"merge_cli.methods.{method}")
    ours = replace(
        module.METHOD, merge=clock.wrapped(module.METHOD.merge, "compute"), measure=measured(module.METHOD.measure)
    )
    stack.enter_context(mock.patch.object(module, "METHOD", ours))
    for name in steps:
        module = importlib.import_module(f"merge_cli.methods.prepare.{name}")
        step = replace(
            module.STEP, apply=clock.wrapped(module.STEP.apply, "compute"), measure=measured(module.STEP.measure)
        )
        stack.enter_context(mock.patch.object(module, "STEP", step))
    find_method.cache_clear()
    stack.callback(find_method.cache_clear)


def merge_here(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Merge in this process and return what each phase took."""
    first_line = time.perf_counter()
    clock = Clock()
    with clock.region("start-up"):
        import merge_cli.cli.render
        import merge_cli.run
        from merge_cli.plan import build_plan
        from merge_cli.recipe import load_recipe
        from merge_cli.text import parse_bytes
    with clock.region("plan"):
        recipe = load_recipe(options.recipe)
    with wrapping(clock, recipe.merge_method, list(recipe.prepare)) as missing:
        with clock.region("plan"):
            plan = build_plan(recipe, memory=parse_bytes(options.memory), threads=options.threads)
        began = time.perf_counter()
        with clock.region("rest"):
            merge_cli.run.merge(plan, out, sync=False)
        merging = time.perf_counter() - began
    return {
        "method": recipe.merge_method,
        "threads": plan.threads,
        "block_numel": plan.block_numel,
        "read_bytes": plan.read_bytes,
        "written_bytes": plan.written_bytes,
        "merging_seconds": merging,
        "missing": missing,
        "phases": {
            phase: {role: vars(spent) for role, spent in roles.items()} for phase, roles in clock.totals().items()
        },
        "first_line": first_line,
        "last_line": time.perf_counter(),
    }


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Merge twice, each time in a new process, and return what the phases of the second took."""
    facts, peak = machine(), 0
    with scratch_folder(options.work.resolve()) as scratch:
        for attempt in ("warm-up", "measured"):
            command = [sys.executable, "-m", "tests.benchmarks.profile_merge", options.recipe.resolve()]
            command += ["--inside", scratch / attempt, "--memory", options.memory]
            command += ["--threads", str(options.threads)] if options.threads else []
            # Looking takes time, so it is the first whose memory is looked at.
            done = run(command, look_every=OFTEN if attempt == "warm-up" else None)
            peak = peak or done.peak_bytes
    found: dict[str, Any] = json.loads(done.output)
    start_up = found["phases"]["start-up"]["main"]
    start_up["seconds"] += found.pop("first_line") - done.began
    found["phases"]["exit"]["main"] |= {"seconds": done.ended - found.pop("last_line"), "calls": 1}
    return {
        "machine": facts,
        "recipe": str(options.recipe),
        **found,
        "whole_process": done.to_json() | {"peak_bytes": peak},
    }


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table that :func:`main` prints."""
    lines = []
    workers_seconds = sum(roles["workers"]["seconds"] for roles in found["phases"].values())
    for phase, roles in found["phases"].items():
        main_thread, workers = roles["main"], roles["workers"]
        shown = [f"{workers['seconds']:.3f}", f"{workers['cpu_seconds']:.3f}"] if workers["calls"] else ["", ""]
        share = f"{workers['seconds'] / workers_seconds:.0%}" if workers["calls"] and workers_seconds else ""
        mine = f"{main_thread['seconds']:.3f}" if main_thread["calls"] else ""
        lines.append([phase, mine, *shown, share, f"{main_thread['calls'] + workers['calls']:,}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder for outputs, which are removed")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(merge_here(options, options.inside)), flush=True)
        # As the command ends: without taking the interpreter apart.
        os._exit(0)
    found = profile(options)
    for name in found["missing"]:
        say(f"there is no {name} to wrap; its time counts as rest")
    if options.json:
        print(json.dumps(found, indent=1))
        return
    headings = ("phase", "main thread s", "workers s", "of it processor s", "share of workers", "calls")
    print(table(headings, rows(found)))
    whole = found["whole_process"]
    print(
        f"\n{found['method']}: {whole['seconds']:.2f} s, {found['merging_seconds']:.2f} of it merging, "
        f"{whole['cpu_seconds']:.2f} s of processors, peak {megabytes(whole['peak_bytes'])} MB; "
        f"{found['threads']} threads, blocks of {found['block_numel']:,}"
    )
    print(describe(found["machine"]))


if __name__ == "__main__":
    main()
