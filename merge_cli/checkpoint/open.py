"""A checkpoint: a folder of weight files and what stands beside them, or a single weight file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.checkpoint.checkpoint import Checkpoint
from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.foreign import refuse_factors, refuse_foreign_file
from merge_cli.checkpoint.header import Header
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.checkpoint.quantised import check_plain
from merge_cli.checkpoint.resolve import check_link_stays_inside
from merge_cli.checkpoint.sources import Source, stored
from merge_cli.checkpoint.torch_bin import read_any_header
from merge_cli.checkpoint.views import dequantised
from merge_cli.checkpoint.weight_files import weight_files
from merge_cli.checkpoint.wrappers import without_wrappers
from merge_cli.errors import CheckpointError
from merge_cli.process import gc_paused
from merge_cli.text import listed


@gc_paused()
def open_checkpoint(root: Path, *, label: str | None = None, files: Files | None = None) -> Checkpoint:
    """Read the headers of the checkpoint at ``root``, a folder or one weight file.

    Raises:
        CheckpointError: If there is none, its files contradict each other, or it is of a kind that cannot be merged.
    """
    files = files or Files()
    with read_errors(root):
        folder = root.is_dir()
        config: Mapping[str, Any] = _config(root, files) if folder else {}
        paths, weight_map = weight_files(root, files) if folder else ([root], None)
    headers, tied = _headers(root, paths, files)
    tensors: dict[str, Source] = {}
    for header in headers:
        twice = sorted((tensors.keys() | tied.keys()) & header.tensors.keys())
        if twice:
            raise CheckpointError(f"{root}: {listed(twice)} stand in more than one file")
        tensors.update((name, stored(extent)) for name, extent in header.tensors.items())
    if weight_map is not None:
        _check_index(root, headers, tied, weight_map)
    refuse_factors(root, tensors)
    named, ties, taken_off = without_wrappers(root, tensors, tied)
    identities = tuple(header.identity for header in headers)
    raw = Checkpoint(label or str(root), root, named, ties, identities, headers[0].metadata, config)
    found = dequantised(raw)
    config, left_over = check_plain(root, found.tensors, found.config)
    notes = tuple(note for note in (left_over, taken_off) if note is not None)
    return replace(found, config=config, notes=(*notes, *found.notes))


def _headers(root: Path, paths: list[Path], files: Files) -> tuple[list[Header], dict[str, str]]:
    """Return the header of each file, and further names of tied tensors with the name that stands in a header."""
    headers: list[Header] = []
    tied: dict[str, str] = {}
    for path in paths:
        refuse_foreign_file(path)
        header, names = read_any_header(path, files)
        headers.append(header)
        twice = sorted(tied.keys() & names.keys())
        if twice:
            raise CheckpointError(f"{root}: {listed(twice)} stand in more than one file")
        tied.update(names)
    return headers, tied


def _config(folder: Path, files: Files) -> dict[str, Any]:
    path = folder / "config.json"
    check_link_stays_inside(path, folder)
    return read_json(path, files) if path.is_file() else {}


def _check_index(root: Path, headers: list[Header], tied: Mapping[str, str], weight_map: Mapping[str, str]) -> None:
    """Refuse an index and headers that do not name the same tensors in the same files."""
    held = {name: header.identity.path.name for header in headers for name in header.tensors}
    held |= {name: held[first] for name, first in tied.items()}
    wrong = [name for name, file in weight_map.items() if held.get(name) != file]
    if wrong:
        raise CheckpointError(
            f"{root}: its index names {listed(wrong)}, which the shard named there does not hold",
            hint="the download is incomplete or mixed; fetch the checkpoint again",
        )
    unlisted = [name for name in held if name not in weight_map]
    if unlisted:
        raise CheckpointError(f"{root}: its shards hold {listed(unlisted)}, which its index does not name")
