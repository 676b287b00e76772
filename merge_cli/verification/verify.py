"""The verification of a merged checkpoint, from its digests to computing it again."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from merge_cli.checkpoint import Checkpoint, Files, Reader, open_checkpoint
from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.report import Verification
from merge_cli.report.manifest import read_manifest
from merge_cli.stream import Listener, NullListener
from merge_cli.text import listed
from merge_cli.verification.digests import check_digests, check_names, not_finite
from merge_cli.verification.replay import Opened, Replay, replay_tensors


def verify(
    out: Path | str,
    *,
    replay: Replay | None = None,
    threads: int | None = None,
    listener: Listener | None = None,
    files: Files | None = None,
) -> Verification:
    """Check a merged checkpoint against its manifest.

    Args:
        out: The merged checkpoint.
        replay: What is to be computed again from the recorded inputs, if anything.
        threads: Worker threads of the replay, and files read at a time; default: one per processor.
        listener: Is told how the work goes.
        files: The system calls to use.

    Returns:
        What was found; problems are part of it and no exceptions.

    Raises:
        CheckpointError: If ``out`` has no manifest, or if an input of the replay is not there any more.
        RecipeError: If the recorded recipe cannot be planned any more.
        VerificationError: If the manifest is damaged.
    """
    out, files = Path(out), files or Files()
    made = read_manifest(out, files)
    inputs = {f"{each.reference}/{file.name}": file.sha256 for each in made.inputs for file in each.files}
    found = Verification(str(out), made.tool, inputs=inputs)
    digests, problems = check_digests(out, made, threads, files, listener or NullListener())
    added, notes = check_names(out, made, files)
    problems += added
    checkpoints: dict[str, Checkpoint] = {}
    for folder in made.folders:
        try:
            checkpoints[folder] = open_checkpoint(out / folder, files=files)
        except CheckpointError as error:
            problems.append(error.message)
    found = replace(found, files=digests, problems=tuple(problems), notes=tuple(notes))
    with contextlib.ExitStack() as stack:
        opened = {
            folder: (checkpoint, stack.enter_context(Reader(checkpoint.files, files)))
            for folder, checkpoint in checkpoints.items()
        }
        found = _looked_through(found, opened, listener or NullListener(), allowed=made.allows_nonfinite)
        if replay is None or len(opened) < len(made.folders):
            return found
        try:
            return replay_tensors(found, made, replay, out, opened, threads=threads, listener=listener)
        except (CheckpointError, RecipeError) as error:
            # What is wrong with the output may be why; it must not be lost for what is wrong with the replay.
            if not found.problems:
                raise
            problem = f"it cannot be computed again: {error.message}"
            return replace(found, problems=(*found.problems, problem))


def _looked_through(found: Verification, opened: Opened, listener: Listener, *, allowed: bool) -> Verification:
    """Look for NaN and infinity in the merged models."""
    wrong = [
        f"{folder}/{name}" if folder else name
        for folder, (checkpoint, reader) in opened.items()
        for name in not_finite(checkpoint, reader, listener)
    ]
    word = f"{listed(wrong)}: NaN or infinity" if wrong else ""
    return replace(
        found,
        tensors=sum(len(checkpoint.tensors) for checkpoint, _ in opened.values()),
        problems=(*found.problems, *([word] if wrong and not allowed else [])),
        notes=(*found.notes, *([f"{word}, as the merge was allowed to"] if wrong and allowed else [])),
    )
