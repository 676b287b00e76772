"""The SHA256SUMS file of an output, which lists every file that a merge wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from merge_cli.checkpoint.files import Files

DIGEST_FILE = "SHA256SUMS"
_MOST_BYTES = 100_000_000
_MOST_CHARACTERS = 1000
_DIGITS = frozenset("0123456789abcdef")


def is_below(name: str) -> bool:
    """Tell whether a recorded name, which may begin with folders, stays below the folder it was recorded in."""
    path = Path(name)
    return len(name) <= _MOST_CHARACTERS and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def sha256_lines(digests: Mapping[str, str]) -> str:
    """Return digests in the form that ``sha256sum -c`` checks."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def read_digests(folder: Path, files: Files) -> tuple[dict[str, str], list[str]]:
    """Return what the file lists, name below the folder -> SHA-256, and its lines that are none.

    Raises:
        CheckpointError: If it cannot be read.
    """
    digests: dict[str, str] = {}
    wrong = []
    for line in files.read_whole(folder / DIGEST_FILE, most=_MOST_BYTES).decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) == 64 and _DIGITS.issuperset(digest) and is_below(name):
            digests[name] = digest
        else:
            wrong.append(line)
    return digests, wrong


def write_digests(folder: Path, files: Files, *, sync: bool) -> None:
    """Write the digests of all files of a folder that is complete, hidden ones apart, into it.

    Raises:
        CheckpointError: If a file cannot be read.
        ResourceError: If the file cannot be written.
    """
    names = sorted(name for name in files_below(folder) if not name.startswith("."))
    digests = {name: files.sha256(folder / name) for name in names}
    files.write_new(folder / DIGEST_FILE, sha256_lines(digests).encode(), sync=sync)


def files_below(folder: Path) -> Iterator[str]:
    """Yield the name of every file below a folder, and of every link, with a slash at its end of every empty folder."""
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from ((here / name).as_posix() for name in (*names, *links))
        if not (folders or names) and here.parts:
            yield f"{here.as_posix()}/"
