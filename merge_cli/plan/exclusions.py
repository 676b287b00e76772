"""Text of an ``exclude:`` block for a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence

from merge_cli.recipe import Exclusion


def exclusion_line(name: str, source: str, given: Sequence[Exclusion]) -> str:
    """Return an ``exclude:`` in a line, by which one more tensor is copied; from the base where no source is named."""
    entries = [entry_of(each.pattern, each.source or "", drop=each.drop) for each in given]
    return f"exclude: [{', '.join((*entries, entry_of(literal(name), source)))}]"


def entry_of(pattern: str, source: str, *, drop: bool = False) -> str:
    """Return one entry of an ``exclude:``; from the base, or else the first model, where no source is named."""
    if drop:
        return f"{{pattern: {_quoted(pattern)}, drop: true}}"
    return f"{{pattern: {_quoted(pattern)}, from: {_quoted(source)}}}" if source else _quoted(pattern)


def literal(name: str) -> str:
    """Return the pattern that is for one name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _quoted(text: str) -> str:
    """Write a text the way YAML takes it as it is."""
    return "'" + text.replace("'", "''") + "'"
