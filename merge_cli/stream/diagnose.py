"""Diagnosis: a merge without an output, for its counts, sums and measures."""

from __future__ import annotations

from merge_cli.checkpoint import Files, Reader
from merge_cli.plan import MergePlan
from merge_cli.stream.engine import stream
from merge_cli.stream.fisher_identity import check_fishers
from merge_cli.stream.progress import Listener
from merge_cli.stream.result import StreamResult


def diagnose(
    plan: MergePlan, *, processes: bool = False, listener: Listener | None = None, files: Files | None = None
) -> StreamResult:
    """Carry out a plan without writing anything, and return what was summed, counted and diagnosed on the way.

    The arguments are those of :func:`merge_cli.merge`.
    """
    with Reader(plan.input_files, files) as reader:
        check_fishers(plan, reader)
        return stream(plan, {}, reader, listener, processes=processes)
