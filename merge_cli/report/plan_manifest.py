"""The manifest of a plan that was carried out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.bounded_json import is_text
from merge_cli.plan import MergePlan
from merge_cli.plan.model import PlannedInput
from merge_cli.plan.outputs import Output
from merge_cli.recipe import Recipe
from merge_cli.report.findings import counts, diagnostics, predictions
from merge_cli.report.manifest import FORMAT, InputFile, InputRecord, Manifest, MethodRecord, VariantRecord
from merge_cli.stream import StreamResult


def plan_manifest(
    plan: MergePlan,
    out: Path,
    result: StreamResult,
    digests: Mapping[str, str],
    *,
    inputs: Mapping[Path, str],
    tool: str,
) -> Manifest:
    """Return the manifest; inputs are named as the recipe names them, never by absolute paths.

    Args:
        plan: What was done.
        out: Where the output will be.
        result: What merging has told.
        digests: File name -> SHA-256 of all that is written, but of the manifest and the digests file.
        inputs: Weight file of an input -> SHA-256; those that were not read or not to be hashed are not there.
        tool: Name and version of this program.
    """
    recipe = plan.recipe
    # What a run writes of itself needs no checking, and texts may be longer than a reader believes.
    return Manifest.model_construct(
        format=FORMAT,
        tool=tool,
        plan_sha256=plan.digest,
        method=MethodRecord(name=recipe.merge_method, version=plan.method.version, source=plan.method.source),
        seed=recipe.seed,
        recipe=recipe.origin.text or recipe_data(recipe),
        recipe_folder=_recipe_folder(recipe, out),
        overrides=recipe.origin.overrides,
        inputs=tuple(_input_record(each, inputs) for each in plan.inputs),
        steps=[{"name": name, **params.model_dump(mode="json", by_alias=True)} for name, params in plan.steps],
        parameters=[] if plan.has_variants else _parameters(plan, plan.variants[0]),
        tensors={
            "merged": len(plan.merged),
            "copied": [task.target.name for task in plan.tasks if task.copied is not None],
        },
        counts=counts(result),
        diagnostics=diagnostics(plan, result),
        warnings=[*plan.warnings, *predictions(plan, result)],
        notes=list(plan.notes),
        files=digests,
        variants=_variants(plan, result) if plan.has_variants else {},
    )


def _variants(plan: MergePlan, result: StreamResult) -> dict[str, VariantRecord]:
    """Return what each variant was given, and what holds for it alone."""
    return {
        output.name: VariantRecord(
            given=dict(output.given),
            parameters=_parameters(plan, output),
            counts=dict(result.outcomes[output.name].counts),
        )
        for output in plan.variants
    }


def _recipe_folder(recipe: Recipe, out: Path) -> str | None:
    """Return the folder of a recipe's file as seen from the output, so that paths in it can be followed from there.

    None for a recipe that is no file, and where the way there would name the folders of this machine: where it leads
    through the root, or through the folder in which users have their homes.
    """
    folder, out = recipe.origin.folder.resolve(), out.resolve()
    if not (folder / recipe.origin.name).is_file():
        return None
    shared = Path(os.path.commonpath([folder, out.parent]))
    with contextlib.suppress(RuntimeError):
        if shared in Path.home().resolve().parents:
            return None
    way = Path(os.path.relpath(folder, out)).as_posix()
    return way if shared != Path(shared.anchor) and is_text(way) else None


def _input_record(checkpoint: PlannedInput, sha256: Mapping[Path, str]) -> InputRecord:
    files = tuple(
        InputFile.model_construct(
            name=file.path.name,
            size=file.size,
            mtime_ns=file.mtime_ns,
            header_sha256=file.sha256,
            sample=file.sample,
            sha256=sha256.get(file.path),
        )
        for file in checkpoint.files
    )
    return InputRecord.model_construct(role=str(checkpoint.role), reference=checkpoint.label, files=files)


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data."""
    return recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _parameters(plan: MergePlan, output: Output) -> list[dict[str, Any]]:
    """Return each set of a merged model's resolved parameters once, with the tensors that have it."""
    groups: dict[int, tuple[dict[str, Any], list[str]]] = {}
    for task in plan.merged:
        params = output.params_of(task)
        assert params is not None
        values = groups.setdefault(id(params), (params.model_dump(mode="json", by_alias=True), []))
        values[1].append(task.target.name)
    everything = len(groups) == 1
    return [{"values": values, "tensors": "all" if everything else names} for values, names in groups.values()]
