"""Parts of a merged checkpoint, computed again from the recorded inputs and compared byte by byte."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from merge_cli.checkpoint import Checkpoint, Extent, Files, Reader, open_checkpoint
from merge_cli.errors import CheckpointError, MergeError, RecipeError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.recipe import Origin, Recipe, parse_recipe
from merge_cli.report import Verification, digests_beside
from merge_cli.report.manifest import MANIFEST_FILE, Manifest, first_finding
from merge_cli.stream import Listener, Span, check_fishers, stream
from merge_cli.text import listed
from merge_cli.verification.inputs import blame_inputs, compare_inputs, input_notes
from merge_cli.version import TOOL

# Twice what the file of a recipe may have; all that is wrong in more would take gigabytes to say.
_MOST_CHARACTERS = 2_000_000

# Folder of each merged model, as seen from the output -> the model, and what reads it.
Opened = Mapping[str, tuple[Checkpoint, Reader]]


@dataclass(frozen=True)
class Replay:
    """The tensors to compute again, and how.

    Attributes:
        count: Tensors, chosen at random; None for all.
        seed: For the choice; None for another one each time.
        folder: Where relative paths in the recipe start, before the working directory; default: where the manifest
            says that the recipe lay, then beside the checkpoint.
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

    def write(self, view: memoryview, place: Extent, start: int) -> None:
        """Compare the bytes of a tensor from element ``start``."""
        held = self.checkpoint.find(place.name)
        if held is None or (held.dtype, held.shape) != (place.dtype, place.shape):
            what = "is missing" if held is None else f"is {list(held.shape)} of {held.dtype.torch_name}"
            self._note(place.name, f"{what}, expected {list(place.shape)} of {place.dtype.torch_name}")
            return
        there = self.reader.read_bytes(held, start, len(view) // place.dtype.itemsize)
        if there != view:
            first = next(i for i, (one, other) in enumerate(zip(there, view, strict=True)) if one != other)
            self._note(place.name, f"differs from element {start + first // place.dtype.itemsize} on")

    def close(self) -> None:
        """Do nothing."""

    def _note(self, name: str, what: str) -> None:
        with self._lock:
            self.different.setdefault(name, what)


def replay_tensors(
    found: Verification,
    made: Manifest,
    replay: Replay,
    out: Path,
    opened: Opened,
    *,
    threads: int | None,
    listener: Listener | None,
) -> Verification:
    """Compute tensors again and compare them with those of every output that is there."""
    plan = _plan_again(made, replay, out, threads)
    seed = None if replay.count is None else replay.seed if replay.seed is not None else secrets.randbelow(2**32)
    names = [task.target.name for task in plan.tasks]
    chosen = set(names) if seed is None else _chosen(names, replay.count or 0, seed)
    done: dict[str, list[Span]] = {
        task.target.name: [(0, task.target.numel)] for task in plan.tasks if task.target.name not in chosen
    }
    with contextlib.ExitStack() as stack:
        sinks = dict(_sinks(plan, out, opened, stack))
        inputs = stack.enter_context(Reader(plan.input_files))
        check_fishers(plan, inputs)
        stream(plan, sinks, inputs, listener, done=done)
    different = {
        output.within(name): what
        for output in plan.outputs
        if output.name in sinks
        for name, what in sinks[output.name].different.items()
    }
    extra = [
        output.within(name)
        for output in plan.variants
        for name in sorted(sinks[output.name].checkpoint.tensors.keys() - set(names))
    ]
    sources = compare_inputs(made, plan)
    if different or extra:
        blame_inputs(sources, Files())
    notes = (*found.notes, *input_notes(sources), *_changes(made, plan))
    problems = [f"'{name}' {what}, when it is computed again" for name, what in sorted(different.items())]
    problems += [f"{listed(extra)}: not in the recipe's output"] if extra else []
    problems += _other_files(plan, out, Files())
    wrong = {name for sink in sinks.values() for name in sink.different}
    good = tuple(name for name in names if name in chosen and name not in wrong)
    return replace(found, replayed=good, seed=seed, problems=(*found.problems, *problems), notes=notes)


def _other_files(plan: MergePlan, out: Path, files: Files) -> Iterator[str]:
    """Say which files beside the weights are not what the plan would write and copy there."""
    for name, digest in digests_beside(plan, files).items():
        # That one is missing is said already.
        if (out / name).is_file() and files.sha256(out / name) != digest:
            yield f"{name} differs, when it is written again"


def _chosen(names: Sequence[str], count: int, seed: int) -> set[str]:
    return {names[i] for i in random.Random(seed).sample(range(len(names)), min(count, len(names)))}


def _plan_again(made: Manifest, replay: Replay, out: Path, threads: int | None) -> MergePlan:
    """Plan the recorded recipe with the inputs as they are now."""
    ways = [out / made.recipe_folder] if made.recipe_folder is not None else []
    first, *others = [replay.folder] if replay.folder is not None else [*ways, out.parent]
    name = f"the recipe in {out / MANIFEST_FILE}"
    origin = Origin(name, folder=first.resolve(), others=tuple(folder.resolve() for folder in others))
    try:
        recipe = _recipe(made, origin)
        return build_plan(
            recipe,
            memory=replay.memory,
            threads=threads,
            allow_nonfinite=made.allows_nonfinite,
            variants={name: variant.given for name, variant in made.variants.items()} or None,
        )
    except RecipeError as error:
        hint = f"the manifest is damaged, or what {made.tool} wrote is not a recipe of {TOOL}"
        raise _hinted(error, hint) from error
    except CheckpointError as error:
        hint = "paths in the recipe start from where the recipe was: give it with --from FOLDER"
        raise _hinted(error, hint) from error


def _hinted(error: MergeError, hint: str) -> MergeError:
    return type(error)(error.message, hint=f"{error.hint}; {hint}" if error.hint else hint)


def _recipe(made: Manifest, origin: Origin) -> Recipe:
    length = len(made.recipe if isinstance(made.recipe, str) else json.dumps(made.recipe))
    if length > _MOST_CHARACTERS:
        raise RecipeError(f"{origin.name} has {length} characters, expected {_MOST_CHARACTERS} at most")
    if isinstance(made.recipe, str):
        return parse_recipe(
            made.recipe, name=origin.name, folder=origin.folder, others=origin.others, overrides=made.overrides
        )
    try:
        return Recipe.model_validate(made.recipe).with_origin(origin)
    except ValidationError as error:
        raise RecipeError(f"{origin.name}: {first_finding(error)}") from error


def _sinks(plan: MergePlan, out: Path, opened: Opened, stack: contextlib.ExitStack) -> Iterator[tuple[str, _Comparing]]:
    """Yield each output that is there with what compares it."""
    for output in plan.outputs:
        if output.folder in opened:
            yield output.name, _Comparing(*opened[output.folder])
        elif (out / output.folder).is_dir():
            checkpoint = open_checkpoint(out / output.folder)
            yield output.name, _Comparing(checkpoint, stack.enter_context(Reader(checkpoint.files)))


def _changes(made: Manifest, plan: MergePlan) -> Iterator[str]:
    """Say what of the program is not what it was."""
    if made.tool != TOOL:
        yield f"made by {made.tool}, computed again by {TOOL}"
    if made.method.version != plan.method.version:
        yield f"{plan.recipe.merge_method} was version {made.method.version} and is {plan.method.version}"
