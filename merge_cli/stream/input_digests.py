"""SHA-256 of the files that a merge reads, computed while it reads them.

Hashing takes half a second of a core per gigabyte, as long as the fastest merges take for all else, and cannot be had
for less; so what was hashed once is remembered (:mod:`merge_cli.checkpoint.digest_cache`). What was not is hashed by
threads of this process that follow the workers through each file, while its bytes are in memory; where there is a
single worker, which is this thread, by that. Where files would crowd the memory it is whoever hashes that drops a
file's pages, not the workers, so that the disk is read once.

That the hub names the files of its cache by their SHA-256 is not made use of: it is what was promised, not what is
there.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from merge_cli.checkpoint import FileIdentity, Reader, Source
from merge_cli.checkpoint.digest_cache import known_digests, remember_digests
from merge_cli.plan import MergePlan
from merge_cli.stream.progress import Listener, NullListener

# Bytes of a file that are hashed at least when some were read, and at a time.
_LEAST, _AT_A_TIME = 2**23, 2**20
# How far behind the workers pages are dropped: these do not finish their ranges in order.
_BEHIND = 2**26


@dataclass
class _File:
    identity: FileIdentity
    digest: Any = field(default_factory=hashlib.sha256)
    hashed: int = 0
    wanted: int = 0
    work: Future[None] | None = None


class InputDigests:
    """Hashes the weight files of a plan's inputs, those of which anything is read.

    A base that gives only its configuration, or a shard of tensors that are dropped, would be read for this alone.

    Args:
        plan: The merge.
        reader: The one that it reads through.
    """

    def __init__(self, plan: MergePlan, reader: Reader) -> None:
        read = {leaf.file for task in plan.tasks for source in task.sources for leaf in source.leaves}
        self._identities = {file.path: file for each in plan.inputs for file in each.files if file.path in read}
        self._reader = reader
        self._began_ns = time.time_ns()
        self._known = known_digests(self._identities.values())
        self._files = {path: _File(each) for path, each in self._identities.items() if path not in self._known}
        self._drops = False
        self._stopped = threading.Event()
        # Threads start with the first work, which comes when workers that are processes have been forked.
        self._threads = ThreadPoolExecutor(plan.threads) if plan.threads > 1 else None

    @property
    def followed(self) -> Collection[Path]:
        """The files that are hashed while they are read."""
        return self._files

    @property
    def nbytes(self) -> int:
        """Bytes that are or were to be hashed."""
        return sum(file.identity.size for file in self._files.values())

    def drop_behind(self) -> None:
        """Have the system drop what is hashed, which workers then leave to this: the files would crowd the memory."""
        self._drops = True

    def follow(self, tensors: Iterable[Source], start: int, count: int) -> None:
        """Take elements of tensors as read, and have their files hashed up to there.

        Raises:
            CheckpointError: If what was to be hashed before cannot be read.
        """
        ranges = (each for tensor in tensors for each in tensor.byte_ranges(start, count)) if self._files else ()
        for path, offset, nbytes in ranges:
            file = self._files.get(path)
            if file is not None:
                self._want(file, offset + nbytes - (_BEHIND if self._drops else 0), least=_LEAST)

    def follow_to_the_end(self) -> None:
        """Have threads begin with everything that is left."""
        for file in self._files.values() if self._threads is not None else ():
            self._want(file, file.identity.size, least=1)

    def finish(self, listener: Listener | None = None) -> dict[Path, str]:
        """Return file -> SHA-256 when all are hashed.

        Raises:
            CheckpointError: If a file cannot be read, or was changed since it was planned.
        """
        self.follow_to_the_end()
        listener = listener or NullListener()
        left = {path: file.identity.size - file.hashed for path, file in self._files.items()}
        if any(left.values()):
            listener.phase("hashing inputs", sum(left.values()))
        for path, file in self._files.items():
            while file.hashed < file.identity.size:
                self._want(file, file.identity.size, least=1)
                if file.work is not None:
                    file.work.result()
            if left[path]:
                listener.advance(path.name, left[path])
        self._reader.check_unchanged()
        computed = {path: file.digest.hexdigest() for path, file in self._files.items()}
        found = self._known | computed
        self._check_touched(found)
        untouched = (each for path, each in self._identities.items() if path in computed)
        fresh = {each: computed[each.path] for each in untouched if self._reader.untouched(each)}
        remember_digests(fresh, began_ns=self._began_ns)
        return {path: found[path] for path in self._identities}

    def _check_touched(self, found: dict[Path, str]) -> None:
        """Hash once more what was touched meanwhile, which a changed mode does, and a change with the time set back."""
        for path, identity in self._identities.items():
            if not self._reader.untouched(identity):
                again = _File(identity, wanted=identity.size)
                self._advance(again)
                if again.digest.hexdigest() != found[path]:
                    raise self._reader.changed(path)

    def _want(self, file: _File, end: int, *, least: int) -> None:
        # Of a companion that is read whole, a range of its tensor may lie beyond the end.
        file.wanted = max(file.wanted, min(end, file.identity.size))
        if file.work is not None:
            if not file.work.done():
                return
            file.work.result()
        if file.wanted - file.hashed < least:
            return
        if self._threads is None:
            self._advance(file)
        else:
            file.work = self._threads.submit(self._advance, file)

    def _advance(self, file: _File) -> None:
        path, buffer = file.identity.path, memoryview(bytearray(_AT_A_TIME))
        while file.hashed < file.wanted and not self._stopped.is_set():
            view = buffer[: file.wanted - file.hashed]
            self._reader.read_raw(view, path, file.hashed)
            file.digest.update(view)
            if self._drops:
                self._reader.forget_raw(path, file.hashed, len(view))
            file.hashed += len(view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
