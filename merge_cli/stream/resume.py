"""Resuming: what an interrupted merge has finished, and whether it is the same merge."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Extent, Files, ShardWriter
from merge_cli.checkpoint.os_errors import write_errors
from merge_cli.errors import CheckpointError, RecipeError, ResourceError, VerificationError
from merge_cli.optional import is_installed
from merge_cli.plan import MergePlan
from merge_cli.stream.checksums import checksum
from merge_cli.stream.device import choose_device
from merge_cli.stream.journal import JOURNAL_FILE, JournalState, drop_unsynced, read_journal
from merge_cli.stream.records import Record
from merge_cli.stream.workers import kernels_of
from merge_cli.version import TOOL

# Bytes read back at a time; whole pages of the checksum.
_READ = 2**20


def decisions(plan: MergePlan) -> dict[str, Any]:
    """Return what must be the same for a merge to go on where another has stopped."""
    device = choose_device(plan.device).partition(":")[0]
    programs: dict[str, Any] = {"tool": TOOL, "device": device}
    if kernels_of(plan, device) == "torch":
        programs["torch"] = version("torch") if is_installed("torch") else None
    return {**programs, "--allow-nonfinite": plan.allow_nonfinite, **plan.decisions}


def read_state(folder: Path, plan: MergePlan, files: Files) -> JournalState | None:
    """Return what an earlier run of the same merge has left; None where there is nothing to resume from.

    Args:
        folder: Where its journal lies.
        plan: What is to be done.
        files: The system calls to use.

    Raises:
        RecipeError: If it was another merge, or if files that it has written are gone.
    """
    past = read_journal(folder / JOURNAL_FILE, files)
    if past is None or not past.records:
        return None
    check_same(past, decisions(plan), folder)
    with write_errors(folder):
        shards = [(folder / name, shard.size) for output in plan.outputs for name, shard in output.shards]
        wrong = [path for path, size in shards if not path.is_file() or path.stat().st_size != size]
    if wrong:
        raise RecipeError(
            f"{wrong[0]}, which an unfinished merge has begun, is gone or changed",
            hint="--restart throws away what is left of it and begins again",
        )
    return past


def verified_state(past: JournalState, plan: MergePlan, writers: Mapping[str, ShardWriter]) -> JournalState:
    """Return of what an earlier run has left what the disk still holds as it was written; the rest is merged again.

    Bytes can change between a stop and the next run: by a bad disk, by another program, by a file system that lost
    blocks and did not say so. So every finished range is read back and held against its checksum, in every output.

    Args:
        past: What an earlier run has left.
        plan: What is to be done.
        writers: Output -> what reads it back.

    Raises:
        ResourceError: If the system does not give back what was written.
    """

    def is_sound(record: Record) -> bool:
        return _fits(record, plan.layout.targets) and all(
            _checksum(output.layout.targets[record.tensor], record, writers[output.name])
            == record.checksums.get(output.name)
            for output in plan.outputs
            if record.tensor in output.layout.targets
        )

    # Reading and summing both leave the interpreter's lock.
    with ThreadPoolExecutor(plan.threads) as pool:
        sound = list(pool.map(is_sound, past.records))
    return replace(past, records=tuple(compress(past.records, sound)), synced=sum(sound[: past.synced]))


def _fits(record: Record, places: Mapping[str, Extent]) -> bool:
    place = places.get(record.tensor)
    return place is not None and 0 < record.count <= place.numel - record.start


def _checksum(place: Extent, record: Record, writer: ShardWriter) -> int:
    size, found = place.dtype.itemsize, 0
    start, end = place.offset + record.start * size, place.offset + (record.start + record.count) * size
    buffer = memoryview(bytearray(min(_READ, end - start)))
    for offset in range(start, end, _READ):
        view = buffer[: end - offset]
        writer.read_back(view, place.file.name, offset)
        found = checksum(view, found)
    return found


def can_go_on(error: BaseException, folder: Path, files: Files) -> bool:
    """Tell whether the same merge could get further another time, after this error and with what is done.

    Not if what it reads or makes is wrong. What a device that fails has not synced counts for nothing.
    """
    if isinstance(error, (CheckpointError, VerificationError)) and not isinstance(error.__cause__, OSError):
        return False
    cause = error.__cause__
    try:
        if isinstance(error, ResourceError) and isinstance(cause, OSError) and cause.errno == errno.EIO:
            drop_unsynced(folder / JOURNAL_FILE, files)
        past = read_journal(folder / JOURNAL_FILE, files)
    except (ResourceError, MemoryError):
        return False
    return past is not None and bool(past.records)


def bytes_of(records: Iterable[Record], plan: MergePlan) -> int:
    """Return how many bytes of all merged models ranges take, of tensors that they have."""
    places = plan.layout.targets
    return len(plan.variants) * sum(
        each.count * places[each.tensor].dtype.itemsize for each in records if each.tensor in places
    )


def check_same(past: JournalState, decisions: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with what another merge has begun.

    Raises:
        RecipeError: Naming what differs.
    """
    changed = list(_changes(past.decisions, decisions))
    if changed:
        raise RecipeError(
            f"{folder} holds an unfinished merge of something else: " + "; ".join(changed),
            hint="--restart throws it away and begins again; or choose another name for the output",
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Say in words which decisions differ."""
    # Both went through JSON or will: tuples and lists are alike there.
    before, now = json.loads(json.dumps([before, now], default=str))
    for what in dict.fromkeys((*before, *now)):
        old, new = before.get(what), now.get(what)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            each = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
            parts = ", ".join(dict.fromkeys(part for name in each for part in _parts(old.get(name), new.get(name))))
            names = f"{', '.join(each[:3])}{' and others' if len(each) > 3 else ''}"
            yield f"{what} {names} changed{f' ({parts})' if parts else ''}"
        elif len(str(old)) + len(str(new)) < 60:
            yield f"{what} was {old} and is {new}"
        else:
            yield f"the {what} changed"


def _parts(old: Any, new: Any) -> list[str]:
    """Return the names of the parts in which two descriptions of a thing differ."""
    both = isinstance(old, dict) and isinstance(new, dict)
    return [part for part in dict.fromkeys((*old, *new)) if old.get(part) != new.get(part)] if both else []
