"""Whether the files of a merged checkpoint are those that were written: digests, and finite numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from merge_cli.checkpoint import Checkpoint, Files, Reader, to_torch
from merge_cli.checkpoint.json_text import read_json
from merge_cli.errors import CheckpointError, listed
from merge_cli.report.manifest import DIGEST_FILE, MANIFEST_FILE
from merge_cli.stream import Listener

_CHUNK = 2**20
_MOST_DIGESTS = 100_000_000
# What is read of a manifest, and what it must be.
_EXPECTED: dict[str, type | tuple[type, ...]] = {
    **{"tool": str, "recipe": (str, dict), "method": dict, "counts": dict, "files": dict},
    **{"overrides": list, "inputs": list},
}


def read_manifest(out: Path, files: Files) -> dict[str, Any]:
    """Return the manifest of a merged checkpoint.

    Raises:
        CheckpointError: If there is none, or none that can be read.
    """
    path = out / MANIFEST_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{out} has no {MANIFEST_FILE}, so there is nothing to check it against",
            hint="only what `merge-cli merge` has made can be verified; `merge-cli inspect` shows any checkpoint",
        )
    made = read_json(path, files)
    wrong = [key for key, kind in _EXPECTED.items() if not isinstance(made.get(key), kind)]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {listed(wrong)} missing, or not what a merge writes there")
    return made


def check_digests(out: Path, made: Mapping[str, Any], threads: int, files: Files) -> tuple[int, list[str]]:
    """Return how many files are as recorded, and what is wrong with the others."""
    problems: list[str] = []
    recorded = _recorded(out, files, problems)
    for name, digest in made["files"].items():
        if recorded.setdefault(name, digest) != digest:
            problems.append(f"{DIGEST_FILE} and {MANIFEST_FILE} disagree about {name}")
    there = [name for name in recorded if (out / name).is_file()]
    problems += [f"{name} is missing" for name in recorded if name not in there]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        actual = dict(zip(there, pool.map(files.sha256, [out / name for name in there]), strict=True))
    changed = [name for name in there if actual[name] != recorded[name]]
    problems += [f"{name} has changed: its SHA-256 is not the recorded one" for name in changed]
    return len(there) - len(changed), problems


def _recorded(out: Path, files: Files, problems: list[str]) -> dict[str, str]:
    """Return file name -> SHA-256 as the digests file says; names that leave the folder are problems."""
    path = out / DIGEST_FILE
    if not path.is_file():
        problems.append(f"{DIGEST_FILE} is missing")
        return {}
    recorded: dict[str, str] = {}
    for line in files.read_whole(path, most=_MOST_DIGESTS).decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        parts = Path(name).parts
        if len(digest) != 64 or not parts or Path(name).is_absolute() or ".." in parts:
            problems.append(f"{DIGEST_FILE} holds a line that is none: {line[:100]!r}")
        else:
            recorded[name] = digest
    return recorded


def not_finite(checkpoint: Checkpoint, reader: Reader, listener: Listener) -> Iterator[str]:
    """Yield the names of the tensors that hold NaN or infinity."""
    listener.phase("looking for NaN", sum(tensor.nbytes for tensor in checkpoint.tensors.values()))
    raw = torch.empty(_CHUNK * 8, dtype=torch.uint8)
    view = memoryview(raw.numpy())  # type: ignore[arg-type]
    for name, tensor in checkpoint.tensors.items():
        finite = True
        for start in range(0, tensor.numel, _CHUNK):
            nbytes = min(_CHUNK, tensor.numel - start) * tensor.dtype.itemsize
            if tensor.dtype.is_float and finite:
                reader.read_into(view[:nbytes], tensor, start)
                values = raw[:nbytes].view(to_torch(tensor.dtype))
                wide = values if values.dtype == torch.float64 else values.to(torch.float32)
                finite = bool(wide.isfinite().all())
            listener.advance(name, nbytes)
        if not finite:
            yield name
