"""SHA-256 of whole files."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from merge_cli.checkpoint.files import reading


def sha256_of_files(paths: Sequence[Path], *, threads: int) -> dict[str, str]:
    """Return name -> SHA-256 in hexadecimal, in the order of ``paths``; hashlib releases the lock, so threads help."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return dict(zip((path.name for path in paths), pool.map(_sha256, paths), strict=True))


def _sha256(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
