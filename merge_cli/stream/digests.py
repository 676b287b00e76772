"""SHA-256 of output shards while they are written."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from merge_cli.checkpoint import Layout, ShardWriter, StoredTensor
from merge_cli.stream.pool import Job

# Bytes that are hashed by one job, and that are read back at a time.
_CHUNK = 8 * 2**20
_READ = 2**20


@dataclass
class _Shard:
    name: str
    size: int
    ready: int
    hashed: int = 0
    busy: bool = False
    written: dict[int, int] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)


class RunningDigests:
    """Hashes shards from their start as far as they are written, in jobs between those that merge.

    A digest needs a file's bytes in order while blocks are written in any order, so what was written is remembered and
    read back from the page cache once everything before it is there too.
    """

    def __init__(self, layout: Layout, writer: ShardWriter) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._shards = {shard.file: _Shard(shard.file, shard.size, len(shard.header)) for shard in layout.shards}

    def add(self, place: StoredTensor, start: int, count: int) -> Iterable[Job[Any]]:
        """Note that ``count`` elements of a tensor from ``start`` are written; return a job where there is enough."""
        shard = self._shards[str(place.file)]
        offset = place.offset + start * place.dtype.itemsize
        with self._lock:
            shard.written[offset] = offset + count * place.dtype.itemsize
            while shard.ready in shard.written:
                shard.ready = shard.written.pop(shard.ready)
            if shard.busy or shard.ready - shard.hashed < _CHUNK:
                return ()
            shard.busy = True
        return [lambda worker: self._advance(shard)]

    def finish(self, *, threads: int) -> dict[str, str]:
        """Hash what is left and return file name -> SHA-256; call it when everything is written.

        Raises:
            ResourceError: If the system does not give back what was written.
        """
        for shard in self._shards.values():
            shard.ready = shard.size
        # hashlib releases the interpreter's lock.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._advance, self._shards.values()))
        return {shard.name: shard.digest.hexdigest() for shard in self._shards.values()}

    def _advance(self, shard: _Shard) -> Iterable[Job[Any]]:
        buffer = memoryview(bytearray(_READ))
        while shard.hashed < shard.ready:
            view = buffer[: min(_READ, shard.ready - shard.hashed)]
            self._writer.read_back(view, shard.name, shard.hashed)
            shard.digest.update(view)
            shard.hashed += len(view)
        with self._lock:
            shard.busy = False
        return ()
