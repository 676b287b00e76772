"""A rehearsal of a merge: all of its checks before the first tensor, which leaves everything as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merge_cli.checkpoint import Files, Reader
from merge_cli.checkpoint.rehearsal import rehearsed
from merge_cli.output.place import check_disk, check_out
from merge_cli.plan import MergePlan
from merge_cli.report import finished
from merge_cli.stream import bytes_of, check_fishers, read_state


@dataclass(frozen=True)
class Rehearsal:
    """State of the place where an output goes.

    Attributes:
        resumed_bytes: Bytes of the output that an interrupted run has written, from which it would resume.
        unchanged: Whether the output is there already and nothing would be done.
    """

    resumed_bytes: int = 0
    unchanged: bool = False


def rehearse(
    plan: MergePlan, out: Path | str, *, force: bool = False, restart: bool = False, files: Files | None = None
) -> Rehearsal:
    """Try everything that :func:`merge_cli.merge` tries before its first tensor, and leave all as it was.

    The arguments are those of :func:`merge_cli.merge`, and so are the errors. What is read later is not looked at:
    whether a tensor is finite, whether what a stopped run has written is still sound.
    """
    out, files = Path(out), files or Files()
    check_out(plan, out, force=force)
    if not force and finished(plan, out, files) is not None:
        return Rehearsal(unchanged=True)
    with rehearsed(out, force=force, files=files) as folder:
        past = None if restart else read_state(folder, plan, files)
        check_disk(plan, folder, files)
        with Reader(plan.input_files, files) as reader:
            check_fishers(plan, reader)
    return Rehearsal(bytes_of(past.records, plan) if past is not None else 0)
