"""Recognition of an output that the same plan has made already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.checkpoint.digest_file import DIGEST_FILE, files_below, read_digests
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan
from merge_cli.report.manifest import MANIFEST_FILE
from merge_cli.report.output_texts import digests_beside


def finished(plan: MergePlan, out: Path, files: Files) -> Mapping[str, str] | None:
    """Return the recorded digests of an output that this plan has made; None where it is another one, or incomplete.

    Names, sizes of the weights, the configuration and side files are looked at, and the digest of what decides the
    weights' bytes. The weights themselves are not read: who calls the output complete holds them against the digests.
    """
    try:
        with read_errors(out):
            if out.is_symlink() or not (out / MANIFEST_FILE).is_file() or not (out / DIGEST_FILE).is_file():
                return None
        made = read_json(out / MANIFEST_FILE, files)
        if made.get("plan_sha256") != plan.digest:
            return None
        digests, _ = read_digests(out, files)
        with read_errors(out):
            there = {name for name in files_below(out) if not name.startswith(".")}
            if there != {DIGEST_FILE, *digests} or not _has_weights(plan, out):
                return None
        beside = digests_beside(plan, files)
        now = {name: files.sha256(out / name) for name in beside}
        return digests if beside == now and beside.items() <= digests.items() else None
    # What cannot be read is not known to be finished; what is wrong with it is said where it is in the way.
    except CheckpointError:
        return None


def _has_weights(plan: MergePlan, out: Path) -> bool:
    shards = [(out / name, shard.size) for output in plan.outputs for name, shard in output.shards]
    return all(path.is_file() and path.stat().st_size == size for path, size in shards)
