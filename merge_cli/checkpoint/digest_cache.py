"""Cache of the SHA-256 of weight files, so that a model is hashed once and not at every merge.

An entry stands for a file that nobody has touched: it is found by device, inode, size, times, header and sample
together, and the change time among them is set by the system alone. A file that was changed less than two seconds
before it was hashed is not kept, because clocks of file systems are coarse and a change of the same moment would not
show. The cache holds no names or paths. Where it is damaged, or may not be written, there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from merge_cli.checkpoint.header import FileIdentity

_FILE = "input-digests.json"
_MOST_ENTRIES = 2000
_MOST_BYTES = 2**20
_SETTLED_NS = 2 * 10**9
_ENTRY = re.compile(r"[0-9a-f]{64}")


def known_digests(identities: Iterable[FileIdentity]) -> dict[Path, str]:
    """Return the SHA-256 of those files that were hashed before and are untouched since."""
    held = _read()
    keys = {identity.path: _key(identity) for identity in identities}
    return {path: held[key] for path, key in keys.items() if key in held}


def remember_digests(found: Mapping[FileIdentity, str], *, began_ns: int) -> None:
    """Keep digests for later runs, the newest where there are too many.

    Args:
        found: Identity from before the file was hashed -> its SHA-256; the file is untouched since.
        began_ns: When the first of them began to be hashed, in nanoseconds since 1970.
    """
    fresh = {
        _key(each): sha256
        for each, sha256 in found.items()
        if began_ns - max(each.mtime_ns, each.place[2]) > _SETTLED_NS
    }
    path = cache_file()
    if path is None or not fresh:
        return
    # Of two runs that write at once one loses, and hashes again some time.
    entries = {key: value for key, value in _read().items() if key not in fresh} | fresh
    text = json.dumps(dict(list(entries.items())[-_MOST_ENTRIES:]))
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=_FILE, dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(text)
            os.replace(name, path)  # noqa: PTH105 - mkstemp gives a name
        except BaseException:
            os.unlink(name)  # noqa: PTH108 - as above
            raise


def cache_file() -> Path | None:
    """Return where the cache is, as the XDG base directory specification says; None where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "merge-cli" / _FILE


def _read() -> dict[str, str]:
    path = cache_file()
    try:
        if path is None or path.stat().st_size > _MOST_BYTES:
            return {}
        held = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(held, dict):
        return {}
    return {key: value for key, value in held.items() if isinstance(value, str) and _ENTRY.fullmatch(value)}


def _key(identity: FileIdentity) -> str:
    told = json.dumps([identity.place, list(identity.content.values())])
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
