"""Makes every system call of small merges fail, one at a time, in every way that suits it.

    python -m tests.crash.faults

After each fault there is a clear error of the right kind and OUT is absent (or the older one, or complete where the
fault came after that), or there is the right result; and the same command then gives the right bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from merge_cli.errors import CheckpointError, MergeError, ResourceError
from merge_cli.run import merge
from tests.crash.cases import RECIPES, TINY, contents, digest, planned, shown, write_models
from tests.crash.seam import Call, Seam, StopAfter, Stopped, descriptors

# The ways through the program that differ in the calls they make.
CASES = ("linear", "ties of the model", "slerp", "gradient_matching", "copies", "steps")

WAYS: Mapping[str, Mapping[str, bool]] = {
    "onto nothing": {},
    "from where another has stopped": {"resumes": True},
    "onto an older output": {"replaces": True},
    "onto an older output, by two renames": {"replaces": True, "exchanges": False},
}

_ALWAYS = ("EIO", "out of memory")
FAULTS: Mapping[str, tuple[str, ...]] = {
    "open_read": (*_ALWAYS, "EACCES", "EMFILE"),
    "open_folder": (*_ALWAYS, "EMFILE"),
    "open_write": (*_ALWAYS, "ENOSPC", "EDQUOT", "EACCES"),
    "pread": (*_ALWAYS, "half", "one byte", "nothing"),
    "pwrite": (*_ALWAYS, "ENOSPC", "EDQUOT", "half", "one byte", "nothing"),
    "reserve": (*_ALWAYS, "ENOSPC", "EDQUOT"),
    "stat": (*_ALWAYS, "larger", "smaller"),
    "read_ahead": _ALWAYS,
    "drop_cache": _ALWAYS,
    "stat_path": (*_ALWAYS, "larger", "smaller"),
    "sync": (*_ALWAYS, "ENOSPC"),
    "rename": (*_ALWAYS, "EACCES", "EPERM"),
    "swap_names": (*_ALWAYS, "EACCES", "EPERM", "unsupported"),
    "close": ("late EIO",),
    "make_folder": (*_ALWAYS, "ENOSPC", "EACCES"),
    "list_names": (*_ALWAYS, "EACCES"),
    "remove": (*_ALWAYS, "EPERM"),
    "remove_folder": (*_ALWAYS, "EPERM"),
    "remove_empty_folder": (*_ALWAYS, "EPERM"),
    "lock": (*_ALWAYS, "ENOLCK", "held"),
    "free_bytes": (*_ALWAYS, "full"),
}


class Faulty(Seam):
    """Makes the call of a number fail."""

    def __init__(self, number: int, fault: str, *, exchanges: bool = True) -> None:
        super().__init__()
        self.number, self.fault, self.exchanges = number, fault, exchanges
        self.hit: Call | None = None

    def around(self, call: Call, make: Callable[..., Any]) -> Any:
        """Make the call unless it is the one."""
        if call.number != self.number:
            return False if call.name == "swap_names" and not self.exchanges else make(*call.arguments)
        self.hit = call
        return _broken(self.fault, call, make)


def _broken(fault: str, call: Call, make: Callable[..., Any]) -> Any:
    if fault in ("half", "one byte"):
        fd, view, offset = call.arguments
        return make(fd, view[: 1 if fault == "one byte" else -(-len(view) // 2)], offset)
    if fault in ("larger", "smaller"):
        found = list(make(*call.arguments))
        found[6] = found[6] + 1 if fault == "larger" else found[6] // 2
        return os.stat_result(found)
    if call.name == "close":
        # A descriptor is gone after a close that failed, too.
        make(*call.arguments)
    if fault == "out of memory":
        raise MemoryError
    plain = {"nothing": 0, "full": 0, "held": False, "unsupported": False}
    if fault in plain:
        return plain[fault]
    number = getattr(errno, fault.removeprefix("late "))
    raise OSError(number, os.strerror(number))


@dataclass(frozen=True)
class Scene:
    """A merge, and what is there before and after it."""

    inputs: Path
    recipe: Mapping[str, Any]
    out: Path
    old: Path | None
    wanted: dict[str, bytes]
    calls: tuple[Call, ...]
    exchanges: bool
    begun: Path | None = None

    def run(self, files: Seam) -> None:
        """Plan and merge, without a cache of digests, from which on fewer calls would be made."""
        with patch.dict(os.environ, XDG_CACHE_HOME=os.devnull):
            plan = planned(self.inputs, self.recipe, files=files, threads=1)
            merge(plan, self.out, force=self.old is not None, files=files)

    def restore(self) -> None:
        """Make it as it was before the merge."""
        for path in self.out.parent.iterdir():
            shutil.rmtree(path)
        if self.old is not None:
            shutil.copytree(self.old, self.out)
        if self.begun is not None:
            shutil.copytree(self.begun, self.out.with_name("out.partial"))


def scene(
    folder: Path,
    inputs: Path,
    recipe: Mapping[str, Any],
    *,
    replaces: bool = False,
    exchanges: bool = True,
    resumes: bool = False,
) -> Scene:
    """Merge once without a fault, to know what is to come and which calls that takes."""
    old, begun = inputs / "older" if replaces else None, None
    if resumes:
        with contextlib.suppress(Stopped):
            merge(planned(inputs, recipe, threads=1), folder / "begun" / "out", files=StopAfter(3))
        begun = folder / "begun" / "out.partial"
        assert begun.is_dir()
        folder = folder / "work"
    found = Scene(inputs, recipe, folder / "out", old, {}, (), exchanges, begun)
    folder.mkdir(parents=True)
    found.restore()
    files = Faulty(-1, "", exchanges=exchanges)
    found.run(files)
    assert not files.held
    return replace(found, wanted=contents(folder / "out"), calls=tuple(files.made))


def every_fault(calls: tuple[Call, ...], *, step: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the number of each call with each fault that suits it; of the pairs only each ``step``-th."""
    pairs = [(call.number, fault) for call in calls for fault in FAULTS[call.name]]
    return iter(pairs[::step])


def inject(scene: Scene, number: int, fault: str) -> str:
    """Run a merge with a fault and again without; return how the first ended. Fails unless all is as it must be."""
    scene.restore()
    files = Faulty(number, fault, exchanges=scene.exchanges)
    open_before, threads_before = descriptors(), threading.active_count()
    error: BaseException | None = None
    try:
        scene.run(files)
    except (MergeError, MemoryError) as raised:
        error = raised
    assert files.hit is not None
    assert not files.held, f"left open: {files.held}"
    assert descriptors() == open_before, "descriptors were left open"
    assert threading.active_count() == threads_before, "threads were left"
    _check_state(scene, error)
    if error is not None:
        _check_kind(error, files.hit, fault, scene)
    outcome = "the right result" if error is None else type(error).__name__
    if scene.out.exists() and shown(scene.out) == scene.wanted and scene.old is None:
        if error is not None:
            outcome += ", complete all the same"
        shutil.rmtree(scene.out)
    scene.run(Faulty(-1, "", exchanges=scene.exchanges))
    assert contents(scene.out) == scene.wanted, "the next run gives other bytes"
    assert [path.name for path in scene.out.parent.iterdir()] == ["out"], "something was left behind"
    return outcome


def _check_state(scene: Scene, error: BaseException | None) -> None:
    found = shown(scene.out) if scene.out.exists() else None
    if error is None:
        assert found == scene.wanted, "no error, and a wrong result"
    elif scene.old is None:
        assert found in (None, scene.wanted), "an error, and an incomplete result"
    else:
        assert found in (contents(scene.old), scene.wanted), "neither the older output nor the new one"


def _check_kind(error: BaseException, hit: Call, fault: str, scene: Scene) -> None:
    if fault == "out of memory":
        assert isinstance(error, MemoryError), repr(error)
        return
    kind = CheckpointError if hit.path.is_relative_to(scene.inputs) else ResourceError
    assert isinstance(error, kind), repr(error)


def run_all(cases: tuple[str, ...], work: Path) -> Counter[str]:
    """Inject every fault into some cases; return how often it ended how."""
    outcomes: Counter[str] = Counter()
    folders = {name: write_models(work / name, TINY, pickled=name == "pickled") for name in ("inputs", "pickled")}
    before = {name: digest(folder) for name, folder in folders.items()}
    for name in (*cases, "pickled"):
        inputs, recipe = folders.get(name, folders["inputs"]), RECIPES["linear" if name == "pickled" else name]
        for how, options in WAYS.items():
            made = scene(work / f"{name} {how}", inputs, recipe, **options)
            found: Counter[str] = Counter()
            for number, fault in every_fault(made.calls):
                try:
                    found[inject(made, number, fault)] += 1
                except BaseException as error:
                    error.add_note(f"{name}, {how}: {fault} at {made.calls[number]}")
                    raise
            outcomes += found
            print(f"{name}, {how}: {len(made.calls)} calls, {found.total()} faults: {dict(found)}", flush=True)
    assert {name: digest(folder) for name, folder in folders.items()} == before, "an input was changed"
    return outcomes


def main() -> int:
    """Inject everything and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", choices=list(RECIPES), action="append", help="default: " + ", ".join(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Where that is memory, a sync takes no time.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory if memory.is_dir() else None) as work:
        outcomes = run_all(tuple(options.case or CASES), Path(work))
    print(f"{outcomes.total()} faults injected: {dict(outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
