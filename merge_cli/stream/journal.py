"""The journal of a merge: which ranges of which tensors are written, so that an interrupted merge can resume.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.os_errors import output_read_errors, write_errors
from merge_cli.errors import ResourceError
from merge_cli.stream.records import Record

JOURNAL_FILE = ".journal"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_SYNC_SECONDS = 10.0
# Of so many ranges, or of ranges of so many elements together, lines are written at once.
_RANGES_TOGETHER = 8
_ELEMENTS_TOGETHER = 2**20
_FORMAT = 3
_MOST_BYTES = 2**32


@dataclass(frozen=True)
class JournalState:
    """Records of earlier runs; ``synced`` of them are known to be on the device."""

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
