"""Working folders of interrupted runs: found beside their outputs, and removed where that is safe."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.folder_lock import LOCK, is_marked, lock_folder, remove_locked_folder
from merge_cli.checkpoint.staging import check_replaceable
from merge_cli.errors import MergeError

_WORKING = (".partial", ".measuring")
_REPLACED = ".replaced"
_MOST_LEVELS = 4


@dataclass(frozen=True)
class Leftover:
    """A folder that has the name of one in which a run works.

    Attributes:
        folder: Where it is.
        nbytes: Size of all files in it.
        changed: When something in it was last changed, in seconds since 1970.
        keep: Why it must not be removed; empty where it may be.
    """

    folder: Path
    nbytes: int
    changed: float
    keep: str


def find_leftovers(root: Path) -> list[Leftover]:
    """Return the folders below ``root`` that stopped runs may have left, in order of their names.

    Looks four levels deep, into no hidden folder and behind no link.
    """
    found = []
    for path in sorted(_candidates(root)):
        files = list(files_in(path))
        changed = max((stat.st_mtime for stat in files), default=path.lstat().st_mtime)
        found.append(Leftover(path, sum(stat.st_size for stat in files), changed, _reason_to_keep(path)))
    return found


def remove_leftover(leftover: Leftover) -> bool:
    """Remove one, if nothing speaks against it by now.

    Returns:
        Whether it is gone.
    """
    folder, files = leftover.folder, Files()
    if _reason_to_keep(folder):
        return False
    with contextlib.suppress(MergeError, OSError):
        if folder.suffix == _REPLACED:
            files.remove_folder(folder)
        else:
            with lock_folder(folder, files, run="run", busy=f"another process is writing {folder}") as lock:
                remove_locked_folder(folder, lock, files)
    return not folder.exists()


def files_in(folder: Path) -> Iterator[os.stat_result]:
    """Yield what the system says of every file below a folder, links not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield (Path(place) / name).lstat()


def _candidates(root: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(root):
        here = Path(place)
        named = [name for name in folders if Path(name).suffix in (*_WORKING, _REPLACED)]
        yield from (here / name for name in named if not (here / name).is_symlink())
        deep = len(here.relative_to(root).parts) >= _MOST_LEVELS - 1
        folders[:] = [] if deep else [name for name in folders if name not in named and not name.startswith(".")]


def _reason_to_keep(folder: Path) -> str:
    if folder.suffix == _REPLACED:
        return _reason_to_keep_replaced(folder)
    if not is_marked(folder):
        return "no merge-cli made it"
    files = Files()
    try:
        fd = files.open_write(folder / LOCK)
    except OSError:
        return "it may not be written"
    try:
        return "" if files.lock(fd) else "a run is at work in it"
    finally:
        files.close(fd)


def _reason_to_keep_replaced(folder: Path) -> str:
    """Return why an output that a newer one was to replace must stay; None where the newer one is in place."""
    out = folder.with_suffix("")
    try:
        check_replaceable(folder, force=True)
    except MergeError:
        return "it holds what merge-cli did not write"
    if not (out / "merge_manifest.json").exists():
        return f"it may be the only copy: there is no {out.name}"
    if is_marked(out) or out.with_name(out.name + ".partial").exists():
        return f"a run that replaces {out.name} has not ended"
    return ""
