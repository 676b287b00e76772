"""Parts of a merged checkpoint, computed again from the recorded inputs and compared byte by byte."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merge_cli import __version__
from merge_cli.checkpoint import Checkpoint, Reader, StoredTensor, open_checkpoint
from merge_cli.errors import CheckpointError, count_of, listed
from merge_cli.plan import MergePlan, build_plan
from merge_cli.recipe import Recipe, load_recipe
from merge_cli.report import Verification
from merge_cli.report.manifest import MANIFEST_FILE, PRECISION_FOLDER
from merge_cli.stream import Listener, Span, check_fishers, stream


@dataclass(frozen=True)
class Replay:
    """What is computed again.

    Attributes:
        count: Tensors, chosen at random; None for all.
        seed: For the choice; None for another one each time.
        folder: Where relative paths in the recipe start, before the working directory.
        memory: Budget in bytes for all buffers together.
    """

    count: int | None
    seed: int | None = None
    folder: Path | None = None
    memory: int = 512 * 2**20


@dataclass
class _Comparing:
    """A sink that compares results with what a checkpoint holds."""

    checkpoint: Checkpoint
    reader: Reader
    different: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, view: memoryview, place: StoredTensor, start: int) -> None:
        """Compare the bytes of a tensor from element ``start``."""
        held = self.checkpoint.find(place.name)
        if held is None or (held.dtype, held.shape) != (place.dtype, place.shape):
            what = "is missing" if held is None else f"is {list(held.shape)} of {held.dtype.torch_name}"
            self._note(place.name, f"{what}, expected {list(place.shape)} of {place.dtype.torch_name}")
            return
        there = bytearray(len(view))
        self.reader.read_into(memoryview(there), held, start)
        if there != view:
            first = next(i for i, (one, other) in enumerate(zip(there, view, strict=True)) if one != other)
            self._note(place.name, f"differs from element {start + first // place.dtype.itemsize} on")

    def _note(self, name: str, what: str) -> None:
        with self._lock:
            self.different.setdefault(name, what)


def replayed(
    found: Verification,
    made: Mapping[str, Any],
    replay: Replay,
    checkpoint: Checkpoint,
    reader: Reader,
    listener: Listener | None,
) -> Verification:
    """Compute tensors again and compare them."""
    plan = _plan_again(made, replay, checkpoint)
    seed = None if replay.count is None else replay.seed if replay.seed is not None else secrets.randbelow(2**32)
    names = [task.place.name for task in plan.tasks]
    chosen = names if seed is None else _chosen(names, replay.count or 0, seed)
    sink = _Comparing(checkpoint, reader)
    done: dict[str, list[Span]] = {
        task.place.name: [(0, task.place.numel)] for task in plan.tasks if task.place.name not in chosen
    }
    files = [file for each in plan.inputs for file in each.files]
    with Reader(files) as inputs:
        check_fishers(plan, inputs)
        precision = _precision(plan, checkpoint)
        if precision is None:
            stream(plan, sink, inputs, listener, done=done)
            different = sink.different
        else:
            with Reader(precision.files) as second:
                other = _Comparing(precision, second)
                stream(plan, sink, inputs, listener, precision_writer=other, done=done)
            different = {f"{PRECISION_FOLDER}/{name}": what for name, what in other.different.items()} | sink.different
    notes = (*found.notes, *_changes(made, plan))
    extra = sorted(checkpoint.tensors.keys() - set(names))
    problems = [f"'{name}' {what}, when it is computed again" for name, what in sorted(different.items())]
    problems += [f"{listed(extra)}: not in the recipe's output"] if extra else []
    good = tuple(name for name in chosen if name not in sink.different)
    return replace(found, replayed=good, seed=seed, problems=(*found.problems, *problems), notes=notes)


def _chosen(names: Sequence[str], count: int, seed: int) -> list[str]:
    picked = set(random.Random(seed).sample(range(len(names)), min(count, len(names))))
    return [name for i, name in enumerate(names) if i in picked]


def _plan_again(made: Mapping[str, Any], replay: Replay, checkpoint: Checkpoint) -> MergePlan:
    """Plan the recorded recipe with the inputs as they are now."""
    recipe = _recipe(made)
    folder = (replay.folder or checkpoint.root.parent).resolve()
    recipe = recipe.with_origin(replace(recipe.origin, name=MANIFEST_FILE, folder=folder))
    allowed = bool(made["counts"].get("nonfinite"))
    try:
        return build_plan(recipe, memory=replay.memory, allow_nonfinite=allowed)
    except CheckpointError as error:
        hint = "paths in the recipe start from where the recipe was: run this there, or give --from FOLDER"
        raise CheckpointError(error.message, hint=f"{error.hint}; {hint}" if error.hint else hint) from error


def _recipe(made: Mapping[str, Any]) -> Recipe:
    if isinstance(made["recipe"], dict):
        return Recipe.model_validate(made["recipe"])
    return load_recipe(made["recipe"] + "\n", overrides=[str(each) for each in made["overrides"]])


def _precision(plan: MergePlan, checkpoint: Checkpoint) -> Checkpoint | None:
    folder = checkpoint.root / PRECISION_FOLDER
    return open_checkpoint(folder) if plan.precision is not None and folder.is_dir() else None


def _changes(made: Mapping[str, Any], plan: MergePlan) -> Iterator[str]:
    """Say which inputs, and what of the program, are not what they were."""
    recorded = {(each["role"], file["name"]): file for each in made["inputs"] for file in each["files"]}
    now = {(each.role, file.path.name): file for each in plan.inputs for file in each.files}
    labels = {each.role: each.label for each in plan.inputs}
    changed, touched = [], []
    for key in dict.fromkeys((*recorded, *now)):
        old, new = recorded.get(key), now.get(key)
        name = f"{labels.get(key[0], key[0])}/{key[1]}"
        if old is None or new is None or (old["size"], old["header_sha256"]) != (new.size, new.sha256):
            changed.append(name)
        elif old["mtime_ns"] != new.mtime_ns:
            touched.append(name)
    if changed:
        yield f"{count_of(len(changed), 'input file')} changed since the merge: {listed(dict.fromkeys(changed))}"
    if touched:
        yield (
            f"{count_of(len(touched), 'input file')} written again since the merge, with the same size and header: "
            f"{listed(dict.fromkeys(touched))}"
        )
    tool = f"merge-cli {__version__}"
    if made["tool"] != tool:
        yield f"made by {made['tool']}, computed again by {tool}"
    if made["method"].get("version") != plan.method.version:
        yield f"{plan.recipe.merge_method} was version {made['method'].get('version')} and is {plan.method.version}"
