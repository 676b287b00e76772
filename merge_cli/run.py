"""The line that the whole program is: a plan is streamed into a staging folder, which then gets its final name."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

from merge_cli import __version__
from merge_cli.checkpoint import FileIdentity, Files, Reader, ShardWriter, Staging, check_replaceable
from merge_cli.checkpoint.files import make_folder, writing
from merge_cli.errors import RecipeError
from merge_cli.plan import MergePlan
from merge_cli.report import MergeReport, manifest, model_card, sha256_lines
from merge_cli.report.manifest import DIGEST_FILE, MANIFEST_FILE, PRECISION_FOLDER
from merge_cli.stream import Discard, Listener, RunningDigests, StreamResult, check_fishers, sha256_of_files, stream

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
            staging.commit(sync=sync)
        except BaseException:
            staging.discard()
            raise
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
        diagnostics=dict(result.diagnosis.values),
        warnings=(*plan.warnings, *result.diagnosis.warnings),
        files=digests,
    )


def measure(plan: MergePlan, *, listener: Listener | None = None, files: Files | None = None) -> StreamResult:
    """Carry out a plan without writing anything, and return what was summed, counted and diagnosed on the way."""
    with Reader(_identities(plan), files) as reader:
        check_fishers(plan, reader)
        return stream(plan, Discard(), reader, listener)


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


def _identities(plan: MergePlan) -> list[FileIdentity]:
    return [file for each in plan.inputs for file in each.files]


def _write(
    plan: MergePlan, folder: Path, name: str, *, sync: bool, listener: Listener | None, files: Files
) -> tuple[StreamResult, dict[str, str]]:
    """Write everything into the staging folder; return what happened and the weight files' digests."""
    result, weights = _write_weights(plan, folder, sync=sync, listener=listener, files=files)
    for source in plan.side_files:
        files.copy(source, folder / source.name, sync=sync)
    for file, text in _texts(plan, name, result, weights).items():
        files.write_new(folder / file, text.encode("utf-8"), sync=sync)
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    others = [str(path) for path in paths if str(path) not in weights and not path.name.startswith(".")]
    digests = weights | sha256_of_files(folder, others, threads=plan.threads)
    files.write_new(folder / DIGEST_FILE, sha256_lines(digests).encode("utf-8"), sync=sync)
    return result, weights


def _write_weights(
    plan: MergePlan, folder: Path, *, sync: bool, listener: Listener | None, files: Files
) -> tuple[StreamResult, dict[str, str]]:
    """Stream the merged tensors, and the posterior precision where it is wanted, into files; hash the former."""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader(_identities(plan), files))
        check_fishers(plan, reader)
        writer = stack.enter_context(ShardWriter(folder, plan.layout, files))
        precision_writer = None
        if plan.precision is not None:
            with writing(folder / PRECISION_FOLDER):
                make_folder(folder / PRECISION_FOLDER)
            precision_writer = stack.enter_context(ShardWriter(folder / PRECISION_FOLDER, plan.precision, files))
        digests = RunningDigests(plan.layout, writer)
        result = stream(plan, writer, reader, listener, precision_writer=precision_writer, digests=digests)
        if sync:
            writer.sync()
            if precision_writer is not None:
                precision_writer.sync()
        return result, digests.finish()


def _texts(plan: MergePlan, name: str, result: StreamResult, weights: Mapping[str, str]) -> dict[str, str]:
    """Return what stands beside the weights: file name -> text."""
    texts = {
        "README.md": model_card(plan, name, tool=_TOOL),
        MANIFEST_FILE: _json(manifest(plan, result.counts, result.diagnosis, weights, tool=_TOOL)),
    }
    if plan.config:
        texts["config.json"] = _json(plan.config)
    layouts = {"": plan.layout, f"{PRECISION_FOLDER}/": plan.precision}
    for place, layout in layouts.items():
        index = layout.index() if layout is not None else None
        if index is not None:
            texts[f"{place}model.safetensors.index.json"] = index.decode("utf-8")
    if plan.precision is not None:
        prior = result.diagnosis.values["prior_precision"]
        texts[f"{PRECISION_FOLDER}/config.json"] = _json({"kind": "precision", "prior_precision": prior})
    return texts


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
