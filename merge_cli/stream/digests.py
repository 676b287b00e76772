"""SHA-256 of whole files."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from merge_cli.checkpoint.files import reading


def sha256_of_files(folder: Path, names: Sequence[str], *, threads: int) -> dict[str, str]:
    """Return name -> SHA-256 in hexadecimal, in the order given; hashlib releases the lock, so threads help."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return dict(zip(names, pool.map(_sha256, [folder / name for name in names]), strict=True))


def _sha256(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
