"""SHA-256 of output shards while they are written."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from merge_cli.checkpoint import Layout, ShardWriter, StoredTensor

# Bytes that are hashed at least and at most when something was written, and that are read back at a time.
_LEAST, _MOST = 2**23, 2**26
_READ = 2**20


@dataclass
class _Shard:
    name: str
    size: int
    ready: int
    hashed: int = 0
    written: dict[int, int] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)


class RunningDigests:
    """Hashes shards from their start as far as they are written.

    A digest needs a file's bytes in order while blocks are written in any order, so what was written is remembered and
    read back from the page cache once everything before it is there too.
    """

    def __init__(self, layout: Layout, writer: ShardWriter) -> None:
        self._writer = writer
        self._shards = {shard.file: _Shard(shard.file, shard.size, len(shard.header)) for shard in layout.shards}

    def add(self, place: StoredTensor, start: int, count: int) -> None:
        """Take ``count`` elements of a tensor from ``start`` as written, and hash what can be, but no more than a bit.

        Raises:
            ResourceError: If the system does not give back what was written.
        """
        shard = self.note(place, start, count)
        if shard.ready - shard.hashed >= _LEAST:
            self._advance(shard, min(shard.ready, shard.hashed + _MOST))

    def note(self, place: StoredTensor, start: int, count: int) -> _Shard:
        """Take elements as written and hash nothing yet, so that work can begin."""
        shard = self._shards[str(place.file)]
        offset = place.offset + start * place.dtype.itemsize
        shard.written[offset] = offset + count * place.dtype.itemsize
        while shard.ready in shard.written:
            shard.ready = shard.written.pop(shard.ready)
        return shard

    def finish(self, *, threads: int) -> dict[str, str]:
        """Hash what is left and return file name -> SHA-256; call it when everything is written.

        Raises:
            ResourceError: If the system does not give back what was written.
        """
        # hashlib releases the interpreter's lock.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda shard: self._advance(shard, shard.size), self._shards.values()))
        return {shard.name: shard.digest.hexdigest() for shard in self._shards.values()}

    def _advance(self, shard: _Shard, end: int) -> None:
        buffer = memoryview(bytearray(_READ))
        while shard.hashed < end:
            view = buffer[: min(_READ, end - shard.hashed)]
            self._writer.read_back(view, shard.name, shard.hashed)
            shard.digest.update(view)
            shard.hashed += len(view)
