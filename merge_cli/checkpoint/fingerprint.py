"""Fingerprint of a model's weights, which tells a fine-tune from its base."""

from __future__ import annotations

import hashlib

from merge_cli.checkpoint.checkpoint import Checkpoint
from merge_cli.checkpoint.reader import Reader

# Bytes read at the start, in the middle and at the end of each tensor.
_SAMPLE_BYTES = 4096


def model_identity(checkpoint: Checkpoint, reader: Reader | None = None) -> str:
    """Return a digest of names, types, shapes and samples of the numbers; the same for any sharding and place.

    Args:
        checkpoint: The model.
        reader: One that may read its files; a new one by default.
    """
    if reader is None:
        with Reader(checkpoint.files) as own:
            return model_identity(checkpoint, own)
    digest = hashlib.blake2b(digest_size=16)
    # By the names that its files have, whatever a merge calls them.
    stored = (leaf for source in checkpoint.tensors.values() for leaf in source.leaves)
    for tensor in sorted(stored, key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
        count = min(tensor.numel, _SAMPLE_BYTES // tensor.dtype.itemsize)
        for start in sorted({0, (tensor.numel - count) // 2, tensor.numel - count}):
            digest.update(reader.read_bytes(tensor, start, count))
    return digest.hexdigest()
