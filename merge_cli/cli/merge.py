"""The commands ``merge`` and ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merge_cli.cli.options import (
    AllowNonfinite,
    AsJson,
    Device,
    Memory,
    Overrides,
    RecipePath,
    ShardSize,
    Strict,
    Threads,
    Verbose,
    make_plan,
)
from merge_cli.cli.results import print_json

if TYPE_CHECKING:
    pass


def merge(
    recipe: RecipePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the merged checkpoint.", show_default=False)],
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace what an earlier merge wrote there.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin again, and throw away what an interrupted run has left.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that is known before the work, and stop.")
    ] = False,
    memory: Memory = "512MiB",
    threads: Threads = None,
    device: Device = "auto",
    shard_size: ShardSize = "5GB",
    fsync: Annotated[bool, typer.Option("--fsync/--no-fsync", help="Wait until the output is on the device.")] = True,
    input_digests: Annotated[
        bool,
        typer.Option(
            "--input-digests/--no-input-digests",
            help="Record the SHA-256 of every input file in the manifest. The first merge of a file hashes it, which "
            "takes half a second to a second of a core per gigabyte; later ones remember.",
        ),
    ] = True,
    allow_nonfinite: AllowNonfinite = False,
    strict: Strict = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Merge the models of RECIPE into OUT; run the same command again to resume an interrupted merge."""
    from merge_cli.checkpoint import check_replaceable
    from merge_cli.checkpoint.os_errors import write_errors
    from merge_cli.cli import render
    from merge_cli.cli.progress import byte_progress
    from merge_cli.output import check_out, rehearse
    from merge_cli.plan import refuse_warnings
    from merge_cli.report.manifest import MANIFEST_FILE
    from merge_cli.run import merge as run_merge
    from merge_cli.stream import with_sample_warnings

    with write_errors(out):
        merged_before = (out / MANIFEST_FILE).is_file()
    if not force and not merged_before:
        # Before the plan, for which the models may have to be downloaded; what a merge has made may be this one.
        check_replaceable(out, force=False)
    planned = make_plan(recipe, overrides, memory, threads, device, shard_size, allow_nonfinite)
    check_out(planned, out, force=force)
    planned = with_sample_warnings(planned)
    if strict:
        refuse_warnings(planned)
    if not quiet:
        render.warnings(planned.warnings)
        render.notes(planned.notes)
    if dry_run:
        render.plan(planned, as_json=as_json, rehearsal=rehearse(planned, out, force=force, restart=restart))
        return
    if verbose:
        render.plan(planned, as_json=False, to_stderr=True)
    with byte_progress(visible=not quiet and not as_json) as listener:
        report = run_merge(
            planned,
            out,
            force=force,
            restart=restart,
            sync=fsync,
            processes=True,
            input_digests=input_digests,
            sample_warnings=False,
            listener=listener,
        )
    try:
        if not quiet:
            render.warnings(report.warnings[len(planned.warnings) :])
            render.notes(report.notes[len(planned.notes) :])
        if as_json:
            print_json(report.to_json())
        elif not quiet:
            render.report(report)
    except BaseException as error:
        error.add_note(f"{out} is complete all the same")
        raise


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    memory: Memory = "512MiB",
    threads: Threads = None,
    device: Device = "auto",
    shard_size: ShardSize = "5GB",
    measured: Annotated[
        bool, typer.Option("--measure", help="Read the tensors too, and show the method's diagnostics.")
    ] = False,
    strict: Strict = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Check RECIPE and show what a merge would read, write and hold; reads a small sample of the tensors only."""
    from merge_cli.cli import render
    from merge_cli.cli.progress import byte_progress
    from merge_cli.plan import refuse_warnings
    from merge_cli.stream import with_sample_warnings

    planned = make_plan(recipe, overrides, memory, threads, device, shard_size, allow_nonfinite=False)
    planned = with_sample_warnings(planned)
    if strict:
        refuse_warnings(planned)
    render.warnings(planned.warnings)
    render.notes(planned.notes)
    found = None
    if measured:
        from merge_cli.stream import diagnose

        with byte_progress(visible=not as_json) as listener:
            found = diagnose(planned, processes=True, listener=listener)
        render.warnings(found.diagnosis.warnings)
    render.plan(planned, as_json=as_json, every_tensor=verbose, found=found)
