"""Files that a merge writes into its staging folder: weights, side files, texts, digests."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from merge_cli.checkpoint import Files, Reader, ShardWriter
from merge_cli.checkpoint.digest_file import DIGEST_FILE, files_below, sha256_lines
from merge_cli.checkpoint.os_errors import write_errors
from merge_cli.output.place import check_disk
from merge_cli.plan import MergePlan
from merge_cli.report import Written, output_texts
from merge_cli.stream import (
    JOURNAL_FILE,
    InputDigests,
    Journal,
    JournalState,
    Listener,
    RunningDigests,
    bytes_of,
    check_fishers,
    decisions,
    stream,
    verified_state,
)
from merge_cli.version import TOOL


@dataclass(frozen=True)
class Options:
    """Options of writing an output; :func:`merge_cli.merge` explains each."""

    sync: bool = True
    processes: bool = False
    input_digests: bool = True
    listener: Listener | None = None


def write_output(
    plan: MergePlan, out: Path, folder: Path, past: JournalState | None, options: Options, files: Files
) -> Written:
    """Write everything into the staging folder.

    Args:
        plan: What is to be done.
        out: Where the output will be.
        folder: The staging folder.
        past: What an earlier run has left in it.
        options: How.
        files: The system calls to use.

    Raises:
        MergeError: One of its kinds.
    """
    check_disk(plan, folder, files)
    written = _write_weights(plan, folder, past, options, files)
    sync, weights, digests = options.sync, dict(written.weights), dict(written.others)
    beside = (*plan.side_files, *plan.side_texts)
    with write_errors(folder):
        for each in _folders(output.within(name) for output in plan.variants for name in beside):
            files.make_folder(folder / each)
    for output in plan.variants:
        for name, source in plan.side_files.items():
            digests[output.within(name)] = files.copy(source, folder / output.within(name), sync=sync)
    known = weights | dict(sorted(digests.items()))
    for file, text in output_texts(plan, out, written.result, known, inputs=written.inputs, tool=TOOL).items():
        content = text.encode("utf-8")
        files.write_new(folder / file, content, sync=sync)
        digests[file] = hashlib.sha256(content).hexdigest()
    listed = sha256_lines(weights | dict(sorted(digests.items())))
    files.write_new(folder / DIGEST_FILE, listed.encode("utf-8"), sync=sync)
    _remove_others(folder, {DIGEST_FILE, *weights, *digests}, files)
    for each in _folders((*weights, *digests)) if sync else ():
        files.sync_folder(folder / each)
    return written


def _folders(names: Iterable[str]) -> list[str]:
    """Return the folders in which files lie, each behind those that it is in."""
    return sorted({parent.as_posix() for name in names for parent in Path(name).parents} - {"."})


def _remove_others(folder: Path, wanted: Collection[str], files: Files) -> None:
    """Remove what stands there by another name: it was written by a run that found other side files."""
    folders = _folders(wanted)
    with write_errors(folder):
        for each in ("", *folders):
            for name in files.list_names(folder / each):
                path = folder / each / name
                if path.relative_to(folder).as_posix() not in folders and path.is_dir():
                    files.remove_folder(path)
        for name in list(files_below(folder)):
            if name not in wanted and not name.startswith("."):
                files.remove(folder / name)


def _write_weights(plan: MergePlan, folder: Path, past: JournalState | None, options: Options, files: Files) -> Written:
    """Stream the tensors of all outputs into files."""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader(plan.input_files, files))
        check_fishers(plan, reader)
        writers = _writers(plan, folder, stack, files)
        before = bytes_of(past.records, plan) if past is not None else 0
        if past is not None:
            past = verified_state(past, plan, writers)
        resumed = bytes_of(past.records, plan) if past is not None else 0
        sync = _synchroniser(writers) if options.sync else None
        journal = Journal(folder / JOURNAL_FILE, decisions(plan), past=past, sync=sync, files=files)
        stack.callback(journal.close)
        inputs = stack.enter_context(InputDigests(plan, reader)) if options.input_digests else None
        digests = RunningDigests(plan.outputs, writers)
        result = stream(
            plan,
            writers,
            reader,
            options.listener,
            digests=digests,
            inputs=inputs,
            journal=journal,
            processes=options.processes,
        )
        journal.synchronise()
        others = digests.finish(threads=plan.threads)
        for writer in writers.values() if options.sync and result.exceeds_page_cache else ():
            writer.drop_cache()
        return Written(
            result=result,
            weights={name: others.pop(name) for name in plan.weight_files},
            others=others,
            inputs=inputs.finish(options.listener) if inputs is not None else {},
            hashed_bytes=inputs.nbytes if inputs is not None else 0,
            resumed_bytes=resumed,
            rotten_bytes=before - resumed,
        )


def _writers(plan: MergePlan, folder: Path, stack: contextlib.ExitStack, files: Files) -> dict[str, ShardWriter]:
    """Open the files of every output, in folders of their own."""
    writers = {}
    for output in plan.outputs:
        root = folder / output.folder
        with write_errors(root):
            files.make_folder(root)
        writers[output.name] = stack.enter_context(ShardWriter(root, output.layout, files))
    return writers


def _synchroniser(writers: dict[str, ShardWriter]) -> Callable[[], None]:
    def synchronise() -> None:
        for writer in writers.values():
            writer.sync()

    return synchronise
