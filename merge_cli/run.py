"""The line that the whole program is: a plan is streamed into a staging folder, which then gets its final name."""

from __future__ import annotations

import json
import time
from pathlib import Path

from merge_cli import __version__
from merge_cli.checkpoint import Files, Reader, ShardWriter, Staging, check_replaceable
from merge_cli.checkpoint.files import reading
from merge_cli.errors import RecipeError
from merge_cli.plan import MergePlan
from merge_cli.report import MergeReport, manifest, model_card, sha256_lines
from merge_cli.report.manifest import DIGEST_FILE, MANIFEST_FILE
from merge_cli.stream import Listener, StreamResult, sha256_of_files, stream

_TOOL = f"merge-cli {__version__}"


def merge(
    plan: MergePlan,
    out: Path | str,
    *,
    force: bool = False,
    sync: bool = True,
    listener: Listener | None = None,
    files: Files | None = None,
) -> MergeReport:
    """Carry out a plan; ``out`` appears complete or not at all.

    Args:
        plan: From :func:`merge_cli.build_plan`.
        out: Folder of the merged checkpoint.
        force: Whether a checkpoint that is there may be replaced.
        sync: Whether to return only when the output is on the device.
        listener: Is told how the work goes.
        files: The system calls to use.

    Raises:
        MergeError: One of its kinds; nothing of the output is left then.
    """
    began = time.perf_counter()
    out = Path(out)
    files = files or Files()
    check_out(plan, out, force=force)
    staging = Staging(out, force=force, files=files)
    with staging.open() as folder:
        try:
            result, digests = _write(plan, folder, out.name, sync=sync, listener=listener, files=files)
        except BaseException:
            staging.discard()
            raise
        staging.commit(sync=sync)
    return MergeReport(
        out=str(out),
        method=plan.recipe.merge_method,
        models=plan.n or 1,
        merged=len(plan.merged),
        copied=len(plan.tasks) - len(plan.merged),
        parameters=sum(task.place.numel for task in plan.tasks),
        read_bytes=plan.read_bytes,
        written_bytes=plan.written_bytes,
        seconds=round(time.perf_counter() - began, 3),
        device=result.device,
        threads=plan.threads,
        counts=result.counts,
        warnings=plan.warnings,
        files=digests,
    )


def check_out(plan: MergePlan, out: Path, *, force: bool) -> None:
    """Refuse an output that would overwrite an input, or that exists.

    Raises:
        RecipeError: With what is in the way.
    """
    target = out.resolve()
    for each in plan.inputs:
        root = each.root.resolve()
        if target == root or target in root.parents:
            what = "is" if target == root else "contains"
            raise RecipeError(f"{out} {what} the input {each.label}", hint="choose another folder for the output")
    check_replaceable(out, force=force)


def _write(
    plan: MergePlan, folder: Path, name: str, *, sync: bool, listener: Listener | None, files: Files
) -> tuple[StreamResult, dict[str, str]]:
    """Write everything into the staging folder."""
    identities = [file for each in plan.inputs for file in each.files]
    with ShardWriter(folder, plan.layout, files) as writer, Reader(identities, files) as reader:
        result = stream(plan, writer, reader, listener)
        if sync:
            writer.sync()
    weights = sha256_of_files([folder / shard.file for shard in plan.layout.shards], threads=plan.threads)
    for source in plan.side_files:
        with reading(source):
            content = source.read_bytes()
        files.write_new(folder / source.name, content, sync=sync)
    texts = {
        "README.md": model_card(plan, name, tool=_TOOL),
        MANIFEST_FILE: _json(manifest(plan, result.counts, weights, tool=_TOOL)),
    }
    if plan.config:
        texts["config.json"] = _json(plan.config)
    for file, text in texts.items():
        files.write_new(folder / file, text.encode("utf-8"), sync=sync)
    index = plan.layout.index()
    if index is not None:
        files.write_new(folder / "model.safetensors.index.json", index, sync=sync)
    others = sorted(path for path in folder.iterdir() if path.name not in weights and not path.name.startswith("."))
    digests = weights | sha256_of_files(others, threads=plan.threads)
    files.write_new(folder / DIGEST_FILE, sha256_lines(digests).encode("utf-8"), sync=sync)
    return result, weights


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
