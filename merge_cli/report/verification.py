"""Result of verifying a merged checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Verification:
    """Result of verifying a merged checkpoint.

    Attributes:
        out: Where it is.
        tool: What it was made with.
        files: How many files have the SHA-256 that was recorded.
        tensors: How many tensors were looked through for NaN and infinity.
        replayed: The tensors that were computed again and have the same bytes.
        seed: What the choice of tensors was drawn with; None where none or all were computed again.
        problems: What is wrong, in sentences; empty where all is well.
        notes: What has changed since and is not wrong by itself.
        inputs: What was merged, as the manifest says: checkpoint and file -> SHA-256, None where it has none.
    """

    out: str
    tool: str
    files: int = 0
    tensors: int = 0
    replayed: tuple[str, ...] = ()
    seed: int | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"sound": self.sound, **asdict(self)}
