"""Checks of a merged checkpoint's files: names, digests, and finite numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from merge_cli.checkpoint import Checkpoint, Files, Reader
from merge_cli.checkpoint.digest_file import DIGEST_FILE, files_below, read_digests
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.errors import CheckpointError
from merge_cli.report.manifest import MANIFEST_FILE, Manifest
from merge_cli.stream import Listener
from merge_cli.stream.decode import read_numbers
from merge_cli.text import listed

_CHUNK = 2**20
# What transformers, peft or a tokenizer could load in place of, or beside, what was merged.
_LOADED = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.gguf", "*.json", "*.jinja",
    "*.py", "*.model", "*.spm", "*.bpe", "*.tiktoken", "*vocab*.txt", "*merges*.txt",
)  # fmt: skip


def check_digests(
    out: Path, made: Manifest, threads: int | None, files: Files, listener: Listener
) -> tuple[int, list[str]]:
    """Return how many files are as recorded, and what is wrong with the others, in the order recorded."""
    problems: list[str] = []
    recorded = _recorded(out, files, problems)
    if recorded and made.format > 1:
        for name in (*made.files, MANIFEST_FILE):
            if name not in recorded:
                problems.append(f"{DIGEST_FILE} does not list {name}")
    for name, digest in made.files.items():
        if recorded.setdefault(name, digest) != digest:
            problems.append(f"{DIGEST_FILE} and {MANIFEST_FILE} disagree about {name}")
    sizes = {name: _size(out / name) for name in recorded}
    listener.phase("hashing", sum(sizes.values()))
    wrong = []
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        found = pool.map(lambda name: _wrong(out, name, recorded[name], files), recorded)
        for name, said in zip(recorded, found, strict=True):
            listener.advance(name, sizes[name])
            wrong += [said] if said else []
    return len(recorded) - len(wrong), problems + wrong


def _size(path: Path) -> int:
    """Return a file's size for what shows progress; what is wrong with the file is found out later."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def check_names(out: Path, made: Manifest, files: Files) -> tuple[list[str], list[str]]:
    """Return what is wrong with files that the merge has not written, and which of them could do no harm, as a note.

    Whatever is loaded with the weights can change what the model does: an adapter, a chat template, a model's own code.
    """
    known = {*made.files, MANIFEST_FILE, DIGEST_FILE}
    if made.format == 1:
        known |= _recorded(out, files, []).keys()
    added = [name for name in sorted(files_below(out)) if name not in known]
    loaded = [name for name in added if _is_loaded(name)]
    others = [name for name in added if name not in loaded]
    notes = [f"not of the merge, and not read with the weights: {listed(others, most=5)}"] if others else []
    return [f"{name} is not a file of the merge, and would be loaded with it" for name in loaded], notes


def _is_loaded(name: str) -> bool:
    parts = Path(name).parts
    # Programs keep their own state in hidden folders; nobody loads a model from there.
    return not any(part.startswith(".") for part in parts) and any(fnmatchcase(parts[-1], each) for each in _LOADED)


def _wrong(out: Path, name: str, digest: str, files: Files) -> str | None:
    """Return what is wrong with a file; that it cannot be read is not an error here but a finding."""
    path = out / name
    try:
        with read_errors(path):
            there = path.is_file()
        if not there:
            return f"{name} is missing"
        return None if files.sha256(path) == digest else f"{name} has changed: its SHA-256 is not the recorded one"
    except CheckpointError as error:
        return error.message


def _recorded(out: Path, files: Files, problems: list[str]) -> dict[str, str]:
    """Return file name -> SHA-256 as the digests file says; names that leave the folder are problems."""
    path = out / DIGEST_FILE
    if not path.is_file():
        problems.append(f"{DIGEST_FILE} is missing")
        return {}
    try:
        recorded, wrong = read_digests(out, files)
    except CheckpointError as error:
        problems.append(error.message)
        return {}
    problems += [f"{DIGEST_FILE} holds a line that is none: {line[:100]!r}" for line in wrong]
    return recorded


def not_finite(checkpoint: Checkpoint, reader: Reader, listener: Listener) -> Iterator[str]:
    """Yield the names of the tensors that hold NaN or infinity."""
    listener.phase("looking for NaN", sum(tensor.nbytes for tensor in checkpoint.tensors.values()))
    for name, tensor in checkpoint.tensors.items():
        finite = True
        for start in range(0, tensor.numel, _CHUNK):
            count = min(_CHUNK, tensor.numel - start)
            if tensor.dtype.is_float and finite:
                # In the widest numbers: what an output in float64 holds need not be a float32.
                finite = bool(np.isfinite(read_numbers(tensor, start, count, reader, np.float64)).all())
            listener.advance(name, count * tensor.itemsize)
        if not finite:
            yield name
