"""The line that the whole program is: a plan is streamed into a staging folder, which then gets its final name.

What a run that was stopped has written stays in the staging folder with its journal, and the same merge goes on from
there. A run that failed because of what it read leaves nothing: it would fail again.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from merge_cli.checkpoint import (
    FileIdentity,
    Files,
    Reader,
    ShardWriter,
    Staging,
    check_apart,
    check_replaceable,
)
from merge_cli.checkpoint.digest_file import DIGEST_FILE, files_below, sha256_lines
from merge_cli.checkpoint.os_errors import reading, writing
from merge_cli.checkpoint.rehearsal import rehearsed
from merge_cli.checkpoint.staging import working_folders
from merge_cli.checkpoint.writer import check_room
from merge_cli.errors import RecipeError
from merge_cli.plan import MergePlan
from merge_cli.report import MergeReport, findings, finished, texts_beside
from merge_cli.stream import (
    JOURNAL_FILE,
    InputDigests,
    Journal,
    Listener,
    Outcome,
    Past,
    RunningDigests,
    StreamResult,
    bytes_of,
    can_go_on,
    check_fishers,
    decisions,
    examine,
    find_past,
    sound_past,
    stream,
)
from merge_cli.text import format_bytes
from merge_cli.version import __version__

_TOOL = f"merge-cli {__version__}"


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
    listener: Listener | None = None,
    files: Files | None = None,
) -> MergeReport:
    """Carry out a plan; ``out`` appears complete or not at all.

    A merge that was stopped goes on from what it has left in ``out.partial``, if it is the same merge.

    Args:
        plan: From :func:`merge_cli.build_plan`.
        out: Folder of the merged checkpoint.
        force: Whether a checkpoint that is there may be replaced.
        restart: Whether to throw away what a stopped merge has left.
        strict: Whether a warning that is known before the merge is an error.
        sync: Whether to return only when the output is on the device.
        processes: Whether to work in processes forked from this one, on Linux and without a GPU: faster, but only for a
            program whose other threads hold no locks at that moment. The default is threads.
        input_digests: Whether the manifest records the SHA-256 of every input file that is read. One that was not
            hashed before is hashed meanwhile, half a second to a second of a core per gigabyte, and its digest is kept
            in the user's cache folder, so that it costs nothing the next time.
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
        _check_weights(plan, out, digests, files)
        report = _unchanged(plan, out, digests, seconds=time.perf_counter() - began)
        return _with_what_is_left(report, staging)
    plan = examined(plan, files=files)
    if strict:
        refuse_warnings(plan)
    wanted = decisions(plan, _TOOL)
    with staging.open(clear=restart) as folder:
        past = find_past(folder, wanted, plan, files)
        try:
            if past is None:
                staging.clear()
            _check_room(plan, folder, files)
            output = _Output(plan, folder, files, sync, processes, input_digests, listener)
            written = _write(output, out, past)
            staging.commit(sync=sync)
        except BaseException as error:
            _leave(staging, error, files)
            raise
    return _with_what_is_left(_report(plan, out, written, seconds=time.perf_counter() - began), staging)


@dataclass(frozen=True)
class Rehearsal:
    """What a merge would find where its output goes.

    Attributes:
        resumed_bytes: Bytes of the output that a run which was stopped has written and it would go on from.
        unchanged: Whether the output is there already and nothing would be done.
    """

    resumed_bytes: int = 0
    unchanged: bool = False


def rehearse(
    plan: MergePlan, out: Path | str, *, force: bool = False, restart: bool = False, files: Files | None = None
) -> Rehearsal:
    """Try everything that :func:`merge` tries before its first tensor, and leave all as it was.

    The arguments are those of :func:`merge`, and so are the errors. What is read later is not looked at: whether a
    tensor is finite, whether what a stopped run has written is still sound.
    """
    out, files = Path(out), files or Files()
    check_out(plan, out, force=force)
    if not force and finished(plan, out, files) is not None:
        return Rehearsal(unchanged=True)
    wanted = decisions(plan, _TOOL)
    with rehearsed(out, force=force, files=files) as folder:
        past = None if restart else find_past(folder, wanted, plan, files)
        _check_room(plan, folder, files)
        with Reader(_identities(plan), files) as reader:
            check_fishers(plan, reader)
    return Rehearsal(bytes_of(past.records, plan) if past is not None else 0)


def _check_room(plan: MergePlan, folder: Path, files: Files) -> None:
    """Refuse a disk that cannot hold all files of the output, less what is there to be used or removed."""
    with reading(folder):
        beside = len(plan.variants) * sum(source.stat().st_size for source in plan.side_files.values())
    with writing(folder):
        names = [name for name in files_below(folder) if not name.startswith(".")]
        there = sum((folder / name).lstat().st_blocks * 512 for name in names)
        wanted = sum(output.layout.nbytes for output in plan.outputs)
        check_room(folder, wanted + beside - there, files.free(folder))


def _with_what_is_left(report: MergeReport, staging: Staging) -> MergeReport:
    if staging.left is None:
        return report
    return replace(report, warnings=(*report.warnings, f"{staging.left}; the same command tries again"))


def examined(plan: MergePlan, *, files: Files | None = None) -> MergePlan:
    """Return the plan with what a sample of the models' numbers tells among its warnings; looks once.

    Raises:
        CheckpointError: If an input cannot be read.
    """
    if plan.examined:
        return plan
    with Reader(_identities(plan), files) as reader:
        found = examine(plan, reader)
    return replace(plan, warnings=(*plan.warnings, *found), examined=True)


def refuse_warnings(plan: MergePlan) -> None:
    """Turn the warnings of a plan into an error.

    Raises:
        RecipeError: With every warning, if there is one.
    """
    if plan.warnings:
        lines = "\n".join(f"  {warning}" for warning in plan.warnings)
        raise RecipeError(
            f"strict allows no warnings, the plan has {len(plan.warnings)}:\n{lines}",
            hint="mend the recipe or the models, or merge without --strict",
        )


def measure(
    plan: MergePlan, *, processes: bool = False, listener: Listener | None = None, files: Files | None = None
) -> StreamResult:
    """Carry out a plan without writing anything, and return what was summed, counted and diagnosed on the way.

    The arguments are those of :func:`merge`.
    """
    with Reader(_identities(plan), files) as reader:
        check_fishers(plan, reader)
        return stream(plan, {}, reader, listener, processes=processes)


def check_out(plan: MergePlan, out: Path, *, force: bool) -> None:
    """Refuse an output that would overwrite what it is made from, or that exists and is not what the plan makes.

    Raises:
        RecipeError: With what is in the way.
    """
    origin = plan.recipe.origin
    sources = {each.root: f"the input {each.label}" for each in plan.inputs}
    if origin.text and (origin.folder / origin.name).is_file():
        sources[origin.folder / origin.name] = f"the recipe {origin.name}"
    for folder in working_folders(out):
        for source, what in sources.items():
            check_apart(folder, source, what)
    if force or finished(plan, out, Files()) is None:
        check_replaceable(out, force=force)


def _leave(staging: Staging, error: BaseException, files: Files) -> None:
    """Note on an error what is left, and keep of an unfinished output only what the same merge can go on from."""
    if staging.committed:
        error.add_note(f"{staging.out} is complete all the same")
    elif can_go_on(error, staging.folder, files):
        error.add_note(f"what is done is kept in {staging.folder}: the same command goes on from there")
    else:
        staging.discard()


def _report(plan: MergePlan, out: Path, written: _Written, *, seconds: float) -> MergeReport:
    result = written.result
    return MergeReport(
        out=str(out),
        method=plan.recipe.merge_method,
        models=plan.n or 1,
        merged=len(plan.merged),
        copied=len(plan.tasks) - len(plan.merged),
        parameters=sum(task.place.numel for task in plan.tasks),
        read_bytes=plan.read_bytes,
        written_bytes=plan.written_bytes,
        resumed_bytes=written.resumed_bytes,
        hashed_bytes=written.hashed_bytes,
        seconds=round(seconds, 3),
        device=result.device,
        threads=plan.threads,
        counts=dict(result.counts),
        diagnostics=dict(result.diagnosis.values),
        findings=findings(plan, result.diagnosis, result.counts),
        warnings=(*plan.warnings, *result.diagnosis.warnings, *_changed(out, written.rotten_bytes)),
        notes=plan.notes,
        files=written.weights,
    )


def _check_weights(plan: MergePlan, out: Path, digests: Mapping[str, str], files: Files) -> None:
    """Refuse to call an output complete whose weights are not what was written."""
    for file in _weights(plan):
        if files.sha256(out / file) != digests[file]:
            raise RecipeError(
                f"{out} is the output of this merge, but {file} has changed since, by its SHA-256",
                hint="--force merges again",
            )


def _weights(plan: MergePlan) -> list[str]:
    """Return the weight files of the merged models."""
    return [name for output in plan.variants for name, _ in output.shards]


def _unchanged(plan: MergePlan, out: Path, digests: Mapping[str, str], *, seconds: float) -> MergeReport:
    """Report on an output that is there already."""
    result = StreamResult({output.name: Outcome() for output in plan.variants}, "", crowded=False)
    weights = {name: digests[name] for name in _weights(plan)}
    written = _Written(result, weights, {}, {}, 0, plan.written_bytes, 0)
    return replace(_report(plan, out, written, seconds=seconds), unchanged=True)


def _changed(out: Path, nbytes: int) -> Iterator[str]:
    if nbytes:
        yield (
            f"{format_bytes(nbytes)} that a stopped run had written to {out}.partial had changed since and were merged "
            "again: a disk or memory that fails does this"
        )


def _identities(plan: MergePlan) -> list[FileIdentity]:
    return [file for each in plan.inputs for file in each.files]


@dataclass(frozen=True)
class _Output:
    """Where a plan's output goes, and how."""

    plan: MergePlan
    folder: Path
    files: Files
    sync: bool
    processes: bool
    input_digests: bool
    listener: Listener | None


@dataclass(frozen=True)
class _Written:
    """What was written, and what happened on the way.

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
    weights: dict[str, str]
    others: dict[str, str]
    inputs: dict[Path, str]
    hashed_bytes: int
    resumed_bytes: int
    rotten_bytes: int


def _write(output: _Output, out: Path, past: Past | None) -> _Written:
    """Write everything into the staging folder."""
    plan, folder, files, sync = output.plan, output.folder, output.files, output.sync
    written = _write_weights(output, past)
    result, weights, digests = written.result, written.weights, dict(written.others)
    folders = {folder / name.rpartition("/")[0] for name in (*plan.side_files, *plan.side_texts) if "/" in name}
    with writing(folder):
        for each in sorted(folders):
            files.make_folder(each)
    digests |= {name: files.copy(source, folder / name, sync=sync) for name, source in plan.side_files.items()}
    known = weights | dict(sorted(digests.items()))
    texts = texts_beside(plan, out, result, known, inputs=written.inputs, tool=_TOOL)
    for file, text in texts.items():
        content = text.encode("utf-8")
        files.write_new(folder / file, content, sync=sync)
        digests[file] = hashlib.sha256(content).hexdigest()
    listed = sha256_lines(weights | dict(sorted(digests.items())))
    files.write_new(folder / DIGEST_FILE, listed.encode("utf-8"), sync=sync)
    _remove_others(folder, {DIGEST_FILE, *weights, *digests}, files)
    if sync:
        for each in sorted({folder / name.rpartition("/")[0] for name in digests if "/" in name}):
            files.sync_folder(each)
    return written


def _remove_others(folder: Path, wanted: Collection[str], files: Files) -> None:
    """Remove what stands there by another name: it was written by a run that found other side files."""
    folders = {name.partition("/")[0] for name in wanted if "/" in name}
    with writing(folder):
        for name in files.names(folder):
            if name not in folders and (folder / name).is_dir():
                files.remove_folder(folder / name)
        for name in list(files_below(folder)):
            if name not in wanted and not name.startswith("."):
                files.remove(folder / name)


def _write_weights(output: _Output, past: Past | None) -> _Written:
    """Stream the tensors of all outputs into files."""
    plan, folder, files = output.plan, output.folder, output.files
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader(_identities(plan), files))
        check_fishers(plan, reader)
        writers: dict[str, ShardWriter] = {}
        for each in plan.outputs:
            root = folder / each.folder
            with writing(root):
                files.make_folder(root)
            writers[each.name] = stack.enter_context(ShardWriter(root, each.layout, files))

        def synchronise() -> None:
            for writer in writers.values():
                writer.sync()

        sync = synchronise if output.sync else None
        before = bytes_of(past.records, plan) if past is not None else 0
        if past is not None:
            past = sound_past(past, plan, writers)
        resumed = bytes_of(past.records, plan) if past is not None else 0
        journal = Journal(folder / JOURNAL_FILE, decisions(plan, _TOOL), past=past, sync=sync, files=files)
        stack.callback(journal.close)
        inputs = stack.enter_context(InputDigests(plan, reader)) if output.input_digests else None
        digests = RunningDigests(plan.outputs, writers)
        result = stream(
            plan,
            writers,
            reader,
            output.listener,
            digests=digests,
            inputs=inputs,
            journal=journal,
            processes=output.processes,
        )
        journal.synchronise()
        others = digests.finish(threads=plan.threads)
        weights = {name: others.pop(name) for name in _weights(plan)}
        for writer in writers.values() if output.sync and result.crowded else ():
            writer.forget()
        hashed = inputs.finish(output.listener) if inputs is not None else {}
        new = inputs.nbytes if inputs is not None else 0
        return _Written(result, weights, others, hashed, new, resumed, before - resumed)
