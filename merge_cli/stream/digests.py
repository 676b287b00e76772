"""SHA-256 of output shards while they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from merge_cli.checkpoint import ShardWriter
from merge_cli.plan.outputs import Output

# Bytes that are hashed at least and at most when something was written, and that are read back at a time.
_LEAST, _MOST = 2**23, 2**26
_READ = 2**20


@dataclass
class _Shard:
    writer: ShardWriter
    file: str
    size: int
    ready: int
    hashed: int = 0
    written: dict[int, int] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)


class RunningDigests:
    """Hashes shards from their start as far as they are written.

    A digest needs a file's bytes in order while blocks are written in any order, so what was written is remembered and
    read back from the page cache once everything before it is there too.

    Args:
        outputs: What is written.
        writers: Output -> what reads it back.
    """

    def __init__(self, outputs: Sequence[Output], writers: Mapping[str, ShardWriter]) -> None:
        self._outputs = outputs
        self._shards = {
            name: _Shard(writers[output.name], shard.file, shard.size, len(shard.header))
            for output in outputs
            for name, shard in output.shards
        }

    def add(self, tensor: str, start: int, count: int) -> None:
        """Take ``count`` elements of a tensor from ``start`` as written, and hash what can be, but no more than a bit.

        Raises:
            ResourceError: If the system does not give back what was written.
        """
        for shard in self.note(tensor, start, count):
            if shard.ready - shard.hashed >= _LEAST:
                _advance(shard, min(shard.ready, shard.hashed + _MOST))

    def note(self, tensor: str, start: int, count: int) -> list[_Shard]:
        """Take elements as written and hash nothing yet, so that work can begin; return the shards that have them."""
        shards = []
        for output in self._outputs:
            place = output.layout.targets.get(tensor)
            if place is None:
                continue
            shard = self._shards[output.within(place.file.name)]
            offset = place.offset + start * place.dtype.itemsize
            shard.written[offset] = offset + count * place.dtype.itemsize
            while shard.ready in shard.written:
                shard.ready = shard.written.pop(shard.ready)
            shards.append(shard)
        return shards

    def finish(self, *, threads: int) -> dict[str, str]:
        """Hash what is left and return file -> SHA-256, as seen from the folder of the merge; call it at the end.

        Raises:
            ResourceError: If the system does not give back what was written.
        """
        # hashlib releases the interpreter's lock.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda shard: _advance(shard, shard.size), self._shards.values()))
        return {name: shard.digest.hexdigest() for name, shard in self._shards.items()}


def _advance(shard: _Shard, end: int) -> None:
    buffer = memoryview(bytearray(_READ))
    while shard.hashed < end:
        view = buffer[: min(_READ, end - shard.hashed)]
        shard.writer.read_back(view, shard.file, shard.hashed)
        shard.digest.update(view)
        shard.hashed += len(view)
