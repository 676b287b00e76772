"""The journal of a merge: which ranges of which tensors are written, so that the same command can go on after a stop.

One line per record, each with a checksum, so that a line that was cut off is told from a whole one. What a process has
written survives its death in the page cache, not the machine's: the first line names the boot, and at another boot only
those ranges count that a later line says were synced to the device. A few lines about small ranges are written
together: what a process that is killed has not noted is merged again.
"""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.os_errors import output_read_errors, write_errors
from merge_cli.errors import ResourceError

JOURNAL_FILE = ".journal"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_SYNC_SECONDS = 10.0
# Of so many ranges, or of ranges of so many elements together, lines are written at once.
_RANGES_TOGETHER = 8
_ELEMENTS_TOGETHER = 2**20
_FORMAT = 3
_MOST_BYTES = 2**32
# Beyond it array indices end.
_MOST_COUNT = 2**63
# Far beyond what float32 numbers add up to, and few of them together are still a number.
_MOST_SUM = 1e290

Span = tuple[int, int]


@dataclass
class Tally:
    """What was counted, and what was summed over a tensor, while a range of it was merged."""

    counts: Counter[str] = field(default_factory=Counter)
    sums: dict[str, array[float]] = field(default_factory=dict)

    def update(self, other: Tally) -> None:
        """Take in what another one has."""
        self.counts.update(other.counts)
        for key, values in other.sums.items():
            self.sums.setdefault(key, array("d")).extend(values)

    def to_json(self) -> list[Any]:
        """Return it as plain data; floats keep every bit."""
        return [dict(self.counts), {key: list(values) for key, values in self.sums.items()}]

    @staticmethod
    def from_json(content: Sequence[Any]) -> Tally:
        """Return what :meth:`to_json` gave.

        Raises:
            ValueError: If it is nothing of the kind; TypeError, AttributeError or OverflowError likewise.
        """
        counts, sums = content
        tally = Tally(Counter(dict(counts)), {key: array("d", values) for key, values in sums.items()})
        if not all(abs(value) <= _MOST_SUM for values in tally.sums.values() for value in values):
            raise ValueError("not a tally")
        if not all(map(_is_count, tally.counts.values())):
            raise ValueError("not a tally")
        return tally


@dataclass(frozen=True)
class Record:
    """A finished range: ``count`` elements of a tensor from element ``start``.

    Attributes:
        tensor: Its name.
        start: Its first element.
        count: How many elements.
        tallies: Merged model -> what was counted and summed in it.
        checksums: Output -> checksum of the bytes written of it there.
    """

    tensor: str
    start: int
    count: int
    tallies: Mapping[str, Tally]
    checksums: Mapping[str, int]

    def to_json(self) -> list[Any]:
        """Return it as plain data; floats keep every bit."""
        tallies = {output: tally.to_json() for output, tally in self.tallies.items()}
        return [self.tensor, self.start, self.count, tallies, dict(self.checksums)]

    @staticmethod
    def from_json(content: Sequence[Any]) -> Record:
        """Return what :meth:`to_json` gave.

        Raises:
            ValueError: If it is nothing of the kind.
        """
        try:
            tensor, start, count, tallies, checksums = content
            tallies = {output: Tally.from_json(tally) for output, tally in tallies.items()}
            checksums = dict(checksums.items())
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError("not a record") from error
        if not isinstance(tensor, str) or not all(map(_is_count, (start, count, *checksums.values()))):
            raise ValueError("not a record")
        return Record(tensor, start, count, tallies, checksums)


@dataclass(frozen=True)
class JournalState:
    """What earlier runs have written; ``synced`` of the records are known to be on the device."""

    decisions: Mapping[str, Any]
    records: tuple[Record, ...] = ()
    synced: int = 0


def read_journal(path: Path, files: Files | None = None) -> JournalState | None:
    """Return what a journal says that can be relied on; None where there is no journal or not even its first line.

    Nothing counts from the first line on that was cut off, was damaged, or is no line of a journal.

    Raises:
        ResourceError: If it cannot be read.
    """
    files = files or Files()
    with write_errors(path.parent):
        if path.name not in files.list_names(path.parent):
            return None
    with output_read_errors():
        lines = _sound_lines(files.read_whole(path, most=_MOST_BYTES))
    first = next(lines, None)
    if not isinstance(first, dict) or first.get("format") != _FORMAT or not isinstance(first.get("decisions"), dict):
        return None
    records: list[Record] = []
    synced = 0
    # A line with the right checksum that is no record was written by nobody who keeps a journal.
    with contextlib.suppress(ValueError):
        for line in lines:
            if isinstance(line, dict):
                synced = _synced(line, len(records))
            else:
                records.append(Record.from_json(line))
    if not first.get("boot") or first["boot"] != boot_id():
        records = records[:synced]
    return JournalState(first["decisions"], tuple(records), synced)


def _synced(line: Mapping[str, Any], most: int) -> int:
    synced = line.get("synced")
    if type(synced) is not int or not 0 <= synced <= most:
        raise ValueError("not a note of a sync")
    return synced


class Journal:
    """Notes finished ranges.

    Args:
        path: Where the journal lies; one that is there is replaced, with ``past`` in it.
        decisions: What decides the output's bytes, for a later run to compare.
        past: What is already written.
        sync: Returns when everything written so far is on the device; None where nobody wants that.
        files: The system calls to use.
        seconds: How often that is asked for: what a machine that dies may cost at most, beside what was under way.
    """

    def __init__(
        self,
        path: Path,
        decisions: Mapping[str, Any],
        *,
        past: JournalState | None = None,
        sync: Callable[[], None] | None = None,
        files: Files | None = None,
        seconds: float = _SYNC_SECONDS,
    ) -> None:
        self._path, self._files, self._sync, self._seconds = path, files or Files(), sync, seconds
        self.past = past or JournalState(decisions)
        self._written = len(self.past.records)
        first = {"format": _FORMAT, "boot": boot_id(), "decisions": decisions}
        kept = [record.to_json() for record in self.past.records]
        lines = [first, *kept[: self.past.synced], {"synced": self.past.synced}, *kept[self.past.synced :]]
        content = b"".join(_line(each) for each in lines)
        fresh = path.with_name(path.name + ".new")
        self._files.write_new(fresh, content, sync=sync is not None)
        with write_errors(path):
            self._files.rename(fresh, path)
        if sync is not None:
            self._files.sync_folder(path.parent)
        with write_errors(path):
            self._fd = self._files.open_write(path)
        self._end = len(content)
        self._lines: list[bytes] = []
        self._unnoted = 0
        self._last_sync = time.monotonic()

    def record(self, record: Record) -> None:
        """Note a range whose bytes are written; from time to time this takes a sync.

        Raises:
            ResourceError: If the note, or what it is about, cannot be kept.
        """
        self._lines.append(_line(record.to_json()))
        self._written += 1
        self._unnoted += record.count
        if len(self._lines) >= _RANGES_TOGETHER or self._unnoted >= _ELEMENTS_TOGETHER:
            self._note()
        if time.monotonic() - self._last_sync >= self._seconds:
            self.synchronise()

    def synchronise(self) -> None:
        """Return when everything written so far is on the device, and noted to be, where anybody wants that.

        Raises:
            ResourceError: If it is not.
        """
        if self._sync is None:
            return
        # Taken before: of what is noted meanwhile nothing is known.
        written = self._written
        self._sync()
        self._lines.append(_line({"synced": written}))
        self._note()
        with write_errors(self._path):
            self._files.sync(self._fd)
        self._last_sync = time.monotonic()

    def _note(self) -> None:
        lines = b"".join(self._lines)
        self._files.write_all(self._fd, memoryview(lines), self._end, self._path)
        self._end += len(lines)
        self._lines.clear()
        self._unnoted = 0

    def close(self) -> None:
        """Close the file; it stays."""
        # A disk that has no room for the last lines costs doing again what they are about, and has been told of.
        with contextlib.suppress(ResourceError):
            self._note()
        with write_errors(self._path):
            self._files.close(self._fd)


def drop_unsynced(path: Path, files: Files) -> None:
    """Strike from a journal what is not known to be on the device.

    Where the device has failed, the system may have dropped what it could not write, and would give back something
    else as if it had been written.

    Raises:
        ResourceError: If that cannot be done.
    """
    past = read_journal(path, files)
    if past is not None and len(past.records) > past.synced:
        Journal(path, past.decisions, past=replace(past, records=past.records[: past.synced]), files=files).close()


def finished_spans(records: Iterable[Record]) -> dict[str, list[Span]]:
    """Return tensor -> what of it is finished, as (start, count) in order and joined where they touch."""
    found: dict[str, list[Span]] = {}
    for record in sorted(records, key=lambda record: (record.tensor, record.start)):
        spans = found.setdefault(record.tensor, [])
        if spans and sum(spans[-1]) >= record.start:
            start = spans[-1][0]
            spans[-1] = (start, max(sum(spans[-1]), record.start + record.count) - start)
        else:
            spans.append((record.start, record.count))
    return found


def gaps(spans: Iterable[Span], numel: int) -> list[Span]:
    """Return what lies between spans, and before and after them, of a tensor of ``numel`` elements."""
    edges = [(0, 0), *spans, (numel, 0)]
    return [(sum(one), other[0] - sum(one)) for one, other in pairwise(edges) if other[0] > sum(one)]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_COUNT


def boot_id() -> str:
    """Return what tells one boot of this machine from another; empty where the system does not say."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _line(content: Any) -> bytes:
    text = json.dumps(content, separators=(",", ":"), default=str).encode("utf-8")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _sound_lines(raw: bytes) -> Iterator[Any]:
    """Yield what the lines hold, up to the first that was cut off or damaged."""
    for line in raw.split(b"\n"):
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text) or not text:
            return
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            return
