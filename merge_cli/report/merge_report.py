"""Report of a finished merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from merge_cli.kernels import compiled
from merge_cli.plan import MergePlan
from merge_cli.report.findings import counts, diagnostics, findings, predictions
from merge_cli.stream import Outcome, StreamResult
from merge_cli.text import format_bytes


@dataclass(frozen=True)
class Written:
    """The files that a merge has written, with counts and findings.

    Attributes:
        result: What was counted and found.
        weights: Weight file of a merged model -> SHA-256.
        others: The same for other outputs.
        inputs: Weight file of an input -> SHA-256; those that were not read or not to be hashed are not there.
        hashed_bytes: Bytes of inputs whose SHA-256 was not known before.
        resumed_bytes: Bytes of the output that a run which was stopped had written.
        rotten_bytes: Bytes of it that had changed since, and were merged again.
    """

    result: StreamResult
    weights: Mapping[str, str]
    others: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[Path, str] = field(default_factory=dict)
    hashed_bytes: int = 0
    resumed_bytes: int = 0
    rotten_bytes: int = 0


@dataclass(frozen=True)
class MergeReport:
    """Report of a merge; sizes in bytes, durations in seconds.

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
        kernels: What computed: ``compiled``, ``numpy`` where nothing was compiled, or ``torch``.
        threads: Workers.
        counts: What the method counted, such as ``clipped`` elements, in all variants together.
        diagnostics: What the method says of its prospects, such as ``extrapolation``; of variants under their names.
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
    kernels: str
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


def merge_report(plan: MergePlan, out: Path, written: Written, *, seconds: float, left: str | None) -> MergeReport:
    """Return what a merge did.

    Args:
        plan: What was done.
        out: Where the output is.
        written: What was written there.
        seconds: What it took.
        left: What of the run could not be removed, in a sentence.
    """
    result = written.result
    warnings = [*plan.warnings, *predictions(plan, result)]
    if written.rotten_bytes:
        warnings.append(
            f"{format_bytes(written.rotten_bytes)} that a run had written to {out}.partial had changed since "
            "and were merged again: a disk or memory that fails does this"
        )
    if left is not None:
        warnings.append(f"{left}; run the same command again")
    return MergeReport(
        out=str(out),
        method=plan.recipe.merge_method,
        models=plan.n or 1,
        merged=len(plan.merged),
        copied=len(plan.tasks) - len(plan.merged),
        parameters=sum(task.target.numel for task in plan.tasks),
        read_bytes=plan.read_bytes,
        written_bytes=plan.written_bytes,
        resumed_bytes=written.resumed_bytes,
        hashed_bytes=written.hashed_bytes,
        seconds=round(seconds, 3),
        device=result.device,
        kernels=result.kernels,
        threads=plan.threads,
        counts=counts(result),
        diagnostics=diagnostics(plan, result),
        findings=findings(plan, result),
        warnings=tuple(warnings),
        notes=(*plan.notes, *_slow_kernels(result.kernels)),
        files=dict(written.weights),
    )


def _slow_kernels(kernels: str) -> Iterator[str]:
    """Yield a note where compiled kernels are missing, and nobody asked to do without."""
    if kernels == "numpy" and not compiled.switched_off():
        yield f"numpy computed, to the same bytes but more slowly: the compiled kernels are {compiled.MISSING}"


def unchanged_report(
    plan: MergePlan, out: Path, digests: Mapping[str, str], *, seconds: float, left: str | None
) -> MergeReport:
    """Report on an output that is there already; ``digests`` are the recorded ones of its files."""
    result = StreamResult(
        {output.name: Outcome() for output in plan.variants}, "", exceeds_page_cache=False, kernels=""
    )
    weights = {name: digests[name] for name in plan.weight_files}
    written = Written(result, weights, resumed_bytes=plan.written_bytes)
    return replace(merge_report(plan, out, written, seconds=seconds, left=left), unchanged=True)
