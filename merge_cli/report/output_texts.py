"""Texts written beside the weights of a merged checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from merge_cli.checkpoint import Files
from merge_cli.plan import MergePlan
from merge_cli.plan.outputs import Output
from merge_cli.plan.variants import variant_of
from merge_cli.recipe import Recipe
from merge_cli.recipe.overrides import text_with
from merge_cli.report.manifest import MANIFEST_FILE
from merge_cli.report.model_card import model_card
from merge_cli.report.plan_manifest import plan_manifest, recipe_data
from merge_cli.stream import StreamResult

RECIPE_FILE = "recipe.yml"


def output_texts(
    plan: MergePlan,
    out: Path,
    result: StreamResult,
    digests: Mapping[str, str],
    *,
    inputs: Mapping[Path, str],
    tool: str,
) -> dict[str, str]:
    """Return file name -> text: model card, recipe, configurations, an index for several shards, and the manifest.

    The manifest comes last and has the SHA-256 of everything else.

    Args:
        plan: What was done.
        out: Where the output will be.
        result: What merging has told.
        digests: File name -> SHA-256 of what is written of the output: weight files, and files that came along.
        inputs: Weight file of an input -> SHA-256; those that were not read or not to be hashed are not there.
        tool: Name and version of this program.
    """
    texts = {output.within("README.md"): _card(plan, output, out.name, tool) for output in plan.variants}
    texts[RECIPE_FILE] = _recipe(plan.recipe)
    for output in plan.variants:
        texts |= {output.within(name): text for name, text in _configuration(plan).items()}
    for output in plan.outputs:
        index = output.layout.index()
        if index is not None:
            texts[output.within("model.safetensors.index.json")] = index.decode("utf-8")
        if not output.is_merged:
            values = result.outcomes[output.beside].diagnosis.values
            config = {**output.config, **{name: values[name] for name in output.diagnostics}}
            texts[output.within("config.json")] = json_text(config)
    known = dict(digests) | {name: _sha256(text) for name, text in texts.items()}
    content = plan_manifest(plan, out, result, known, inputs=inputs, tool=tool)
    return texts | {MANIFEST_FILE: json_text(content.model_dump())}


def _card(plan: MergePlan, output: Output, name: str, tool: str) -> str:
    recipe = variant_of(plan.recipe, output.folder, output.given).recipe
    return model_card(replace(plan, recipe=recipe), f"{name}/{output.folder}" if output.folder else name, tool=tool)


def _recipe(recipe: Recipe) -> str:
    """Return a recipe as text, with what ``--set`` changed, so that it can be run again."""
    origin = recipe.origin
    if origin.text:
        return text_with(origin.text, origin.name, origin.overrides)
    import yaml

    written: str = yaml.safe_dump(recipe_data(recipe), sort_keys=False, allow_unicode=True)
    return written


def digests_beside(plan: MergePlan, files: Files) -> dict[str, str]:
    """Return the SHA-256 of what stands beside the weights and does not depend on them: configuration, side files.

    Raises:
        CheckpointError: If a file that comes along cannot be read.
    """
    digests = {name: files.sha256(source) for name, source in plan.side_files.items()}
    digests |= {name: _sha256(text) for name, text in _configuration(plan).items()}
    return {output.within(name): digest for output in plan.variants for name, digest in digests.items()}


def _configuration(plan: MergePlan) -> dict[str, str]:
    return dict(plan.side_texts) | ({"config.json": json_text(plan.config)} if plan.config else {})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def json_text(content: object) -> str:
    """Return plain data as it stands in the files of an output."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
