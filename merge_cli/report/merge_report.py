"""What a merge did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MergeReport:
    """What a merge did; sizes in bytes, durations in seconds.

    Attributes:
        out: Where the merged checkpoint is.
        method: The method's name.
        models: How many models were merged.
        merged: Tensors that went through the method.
        copied: Tensors that were copied.
        parameters: Elements of all tensors.
        read_bytes: Input bytes that entered the output.
        written_bytes: Bytes of the weight files.
        resumed_bytes: Output bytes that a run which was stopped had written.
        hashed_bytes: Input bytes whose SHA-256 was not known from before and was computed.
        seconds: From the first byte read to the committed checkpoint.
        device: What it ran on.
        threads: Workers.
        counts: What the method counted, such as ``clipped`` elements.
        diagnostics: What the method says of its prospects, such as ``extrapolation``.
        findings: What counts and diagnostics mean, in sentences that name the models.
        warnings: What a user should know.
        notes: What was set right or is as the recipe says.
        files: Name -> SHA-256 of each weight file.
        unchanged: Whether the output was there already, made by this plan, and nothing was done.
    """

    out: str
    method: str
    models: int
    merged: int
    copied: int
    parameters: int
    read_bytes: int
    written_bytes: int
    resumed_bytes: int
    hashed_bytes: int
    seconds: float
    device: str
    threads: int
    counts: Mapping[str, int]
    diagnostics: Mapping[str, Any]
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    files: Mapping[str, str]
    unchanged: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)
