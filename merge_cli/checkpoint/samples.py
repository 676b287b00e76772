"""Digest of a sample of a weight file's numbers, which tells fine-tunes with the same header apart.

The header says names, shapes and places, which all fine-tunes of a model share; size and time are kept by whatever
copies, synchronises or unpacks files. Few numbers tell two trainings apart, for training changes nearly all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from merge_cli.checkpoint.extent import Extent
from merge_cli.checkpoint.files import Files

# Reads of a file at most, whatever it holds, and bytes of each: a fifth of a millisecond where they are in memory.
_READS, _BYTES = 64, 4096
# Of a tensor: its start, its middle and its end.
_MOST_OF_ONE = 3
# In an order of places that never repeats: the golden ratio, in 65,536ths.
_STEP, _WHOLE = 40503, 65536


def sample_digest(tensors: Sequence[Extent], fd: int, files: Files) -> str:
    """Return a digest of up to 64 runs of the numbers in an open file, the same ones every time.

    Where the file holds few tensors each of them is sampled, otherwise 64 that are evenly spaced, small ones too.

    Args:
        tensors: What the file holds, in the order of the bytes; all of it must be there.
        fd: The file.
        files: The system calls to use.

    Raises:
        CheckpointError: If it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    buffer = memoryview(bytearray(_BYTES))
    for tensor, start, count in _runs(tensors):
        files.read_exactly(fd, buffer[:count], tensor.offset + start, tensor.file)
        digest.update(buffer[:count])
    return digest.hexdigest()


def _runs(tensors: Sequence[Extent]) -> Iterator[tuple[Extent, int, int]]:
    """Yield what to read: a tensor, and from which of its bytes how many."""
    chosen = min(len(tensors), _READS)
    each = min(_MOST_OF_ONE, _READS // max(1, chosen))
    for i in range(chosen):
        tensor = tensors[i * (len(tensors) - 1) // max(1, chosen - 1)]
        nbytes = tensor.nbytes
        count = min(nbytes, _BYTES)
        if each == 1:
            starts = {(nbytes - count) * (i * _STEP % _WHOLE) // _WHOLE}
        else:
            starts = {(nbytes - count) * part // (each - 1) for part in range(each)}
        yield from ((tensor, start, count) for start in sorted(starts) if count)
