"""The merge: a plan is streamed into a staging folder, which then gets its final name.

The files of an interrupted run stay in the staging folder with its journal, and the same merge resumes from them. A
run that failed because of what it read leaves nothing: it would fail again.
"""

from __future__ import annotations

import time
from pathlib import Path

from merge_cli.checkpoint import Files, Staging
from merge_cli.output import Options, check_out, check_weights, keep_or_discard, write_output
from merge_cli.plan import MergePlan, refuse_warnings
from merge_cli.report import MergeReport, finished, merge_report, unchanged_report
from merge_cli.stream import Listener, read_state, with_sample_warnings


def merge(
    plan: MergePlan,
    out: Path | str,
    *,
    force: bool = False,
    restart: bool = False,
    strict: bool = False,
    sync: bool = True,
    processes: bool = False,
    input_digests: bool = True,
    sample_warnings: bool = True,
    listener: Listener | None = None,
    files: Files | None = None,
) -> MergeReport:
    """Carry out a plan; ``out`` appears complete or not at all.

    An interrupted merge resumes from what it has left in ``out.partial``, if it is the same merge. The
    variants of a plan are merged in one pass, each into a folder of its own in ``out``.

    Args:
        plan: From :func:`merge_cli.build_plan`.
        out: Folder of the merged checkpoint.
        force: Whether a checkpoint that is there may be replaced.
        restart: Whether to throw away what a stopped merge has left.
        strict: Whether a warning that is known before the merge is an error.
        sync: Whether to return only when the output is on the device.
        processes: Whether to work in processes where there is no GPU: forked from this one on Linux, which is faster,
            but only for a program whose other threads hold no locks at that moment; fresh ones where the environment
            has ``MERGE_CLI_START_METHOD=spawn``, also on other systems. The default is threads.
        input_digests: Whether the manifest records the SHA-256 of every input file that is read. One that was not
            hashed before is hashed meanwhile, half a second to a second of a core per gigabyte, and its digest is kept
            in the user's cache folder, so that it costs nothing the next time.
        sample_warnings: Whether to look for warnings in a sample of the models' numbers before the work; False where
            the plan is from :func:`with_sample_warnings`.
        listener: Is told how the work goes.
        files: The system calls to use.

    Raises:
        MergeError: One of its kinds. Nothing of the output is left then, or a note on the error says what is kept.
    """
    began = time.perf_counter()
    out = Path(out)
    files = files or Files()
    staging = Staging(out, force=force, files=files)
    check_out(plan, out, force=force)
    staging.finish()
    digests = None if force else finished(plan, out, files)
    if digests is not None:
        check_weights(plan, out, digests, files)
        return unchanged_report(plan, out, digests, seconds=time.perf_counter() - began, left=staging.left)
    if sample_warnings:
        plan = with_sample_warnings(plan, files=files)
    if strict:
        refuse_warnings(plan)
    options = Options(sync=sync, processes=processes, input_digests=input_digests, listener=listener)
    with staging.open(clear=restart) as folder:
        past = read_state(folder, plan, files)
        try:
            if past is None:
                staging.clear()
            written = write_output(plan, out, folder, past, options, files)
            staging.commit(sync=sync)
        except BaseException as error:
            keep_or_discard(staging, error, files)
            raise
    return merge_report(plan, out, written, seconds=time.perf_counter() - began, left=staging.left)
