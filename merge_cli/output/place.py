"""The place of an output: checks before a merge, and the staging folder after a failed one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from merge_cli.checkpoint import Files, Staging, check_no_overlap, check_replaceable
from merge_cli.checkpoint.digest_file import files_below
from merge_cli.checkpoint.os_errors import read_errors, write_errors
from merge_cli.checkpoint.staging import working_folders
from merge_cli.checkpoint.writer import check_room
from merge_cli.errors import RecipeError
from merge_cli.plan import MergePlan
from merge_cli.report import finished
from merge_cli.stream import can_go_on


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
            check_no_overlap(folder, source, what)
    if force or finished(plan, out, Files()) is None:
        check_replaceable(out, force=force)


def check_weights(plan: MergePlan, out: Path, digests: Mapping[str, str], files: Files) -> None:
    """Refuse to call an output complete whose weights are not what was written.

    Args:
        plan: What has made it.
        out: Where it is.
        digests: File -> SHA-256, as recorded.
        files: The system calls to use.

    Raises:
        RecipeError: Naming a file that has changed.
    """
    for file in plan.weight_files:
        if files.sha256(out / file) != digests[file]:
            raise RecipeError(
                f"{out} is the output of this merge, but {file} has changed since, by its SHA-256",
                hint="--force merges again",
            )


def check_disk(plan: MergePlan, folder: Path, files: Files) -> None:
    """Refuse a disk that cannot hold all files of the output, less what is there to be used or removed.

    Raises:
        ResourceError: With both sizes.
    """
    with read_errors(folder):
        beside = len(plan.variants) * sum(source.stat().st_size for source in plan.side_files.values())
    with write_errors(folder):
        names = [name for name in files_below(folder) if not name.startswith(".")]
        there = sum((folder / name).lstat().st_blocks * 512 for name in names)
        wanted = sum(output.layout.nbytes for output in plan.outputs)
        check_room(folder, wanted + beside - there, files.free_bytes(folder))


def keep_or_discard(staging: Staging, error: BaseException, files: Files) -> None:
    """Note on an error what is left, and keep of an unfinished output only what the same merge can resume from."""
    if staging.committed:
        error.add_note(f"{staging.out} is complete all the same")
    elif can_go_on(error, staging.folder, files):
        error.add_note(f"what is done is kept in {staging.folder}: run the same command again to resume")
    else:
        staging.discard()
