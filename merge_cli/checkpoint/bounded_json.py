"""JSON read within bounds on size, values and depth, for files that come with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.files import Files
from merge_cli.errors import CheckpointError

# An index of half a million tensors.
_MOST_BYTES = 100_000_000
# A header of half a million tensors has fewer; in memory each takes up to a hundred bytes, and two in the file.
_MOST_VALUES = 5_000_000
_MOST_DEPTH = 64


def parse_json(raw: bytes) -> Any:
    """Parse JSON in which no key stands twice.

    Raises:
        ValueError: If it is not such JSON, or would take more memory than any header.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names: set[str] = set()
            twice = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
            raise ValueError(f"{twice[:100]!r} stands twice")
        return found

    return _parsed(raw, unique)


def read_json(path: Path, files: Files) -> dict[str, Any]:
    """Read a JSON object that stands beside weights: a configuration, an index, a manifest.

    Where a key stands twice the last one counts, as for every program that reads such files.

    Raises:
        CheckpointError: If it is none, or larger or deeper than any.
    """
    raw = files.read_whole(path, most=_MOST_BYTES)
    try:
        content = _parsed(raw, None)
        _check_values(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def is_text(value: str) -> bool:
    """Tell whether UTF-8 can hold it; JSON and pickles can hold halves of surrogate pairs, which nothing can write."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parsed(raw: bytes, pairs_hook: Any) -> Any:
    # Every value but the first of a list or object costs a comma, and every list or object its opening.
    if sum(raw.count(sign) for sign in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES} values")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=pairs_hook)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _check_values(content: Any) -> None:
    """Refuse values that are nested too deeply for recursion, or that UTF-8 cannot hold."""
    level = [content]
    for _ in range(_MOST_DEPTH):
        texts = [key for value in level if isinstance(value, dict) for key in value]
        texts += [value for value in level if isinstance(value, str)]
        wrong = next((text for text in texts if not is_text(text)), None)
        if wrong is not None:
            raise ValueError(f"{wrong[:100]!r} has half of a surrogate pair, which is not text")
        holders = [value for value in level if isinstance(value, (dict, list))]
        inside = [value.values() if isinstance(value, dict) else value for value in holders]
        level = [value for values in inside for value in values]
        if not level:
            return
    raise ValueError("it is nested too deeply")
