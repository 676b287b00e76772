"""Provenance: the inputs that a merged checkpoint's manifest records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.checkpoint.resolve import check_link_stays_inside
from merge_cli.errors import CheckpointError
from merge_cli.report.manifest import MANIFEST_FILE

_MOST_CHARACTERS = 1000
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Ingredient:
    """A weight file that went into a merge: role and name of its checkpoint, its own name, and its SHA-256."""

    role: str
    reference: str
    file: str
    sha256: str | None


def made_from(root: Path) -> tuple[Ingredient, ...]:
    """Return what the manifest in a folder records of the inputs; nothing where there is no sound manifest."""
    path = root / MANIFEST_FILE
    try:
        if not path.is_file():
            return ()
        check_link_stays_inside(path, root)
        return tuple(_ingredients(read_json(path, Files())["inputs"]))
    except (CheckpointError, OSError, KeyError, TypeError, ValueError):
        return ()


def _ingredients(inputs: Any) -> Iterator[Ingredient]:
    for each in inputs:
        for file in each["files"]:
            role, reference, name, sha256 = each["role"], each["reference"], file["name"], file.get("sha256")
            if not all(isinstance(text, str) and len(text) <= _MOST_CHARACTERS for text in (role, reference, name)):
                raise ValueError("it is not a manifest")
            yield Ingredient(
                role, reference, name, sha256 if isinstance(sha256, str) and _DIGEST.fullmatch(sha256) else None
            )
