"""The set of side files of an output, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class SideFiles:
    """Files that the output gets beside its weights.

    Attributes:
        files: Name -> file that is copied; a name may lie in a folder.
        texts: Name -> text of a file that is written.
        warnings: What differs between the models, in sentences.
        notes: What was taken from a model, in sentences.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
