"""The texts that stand beside the weights of a merged checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from merge_cli.methods.contract import Diagnosis
from merge_cli.plan import MergePlan
from merge_cli.report.card import model_card
from merge_cli.report.manifest import MANIFEST_FILE, PRECISION_FOLDER, manifest


def texts_beside(
    plan: MergePlan,
    out: Path,
    counts: Mapping[str, int],
    diagnosis: Diagnosis,
    digests: Mapping[str, str],
    *,
    inputs: Mapping[Path, str],
    tool: str,
) -> dict[str, str]:
    """Return file name -> text: model card, manifest, configurations, and an index where there are several shards.

    Args:
        plan: What was done.
        out: Where the output will be.
        counts: What the method counted.
        diagnosis: What the method says of its prospects.
        digests: File name -> SHA-256 of the output's weight files.
        inputs: Weight file of an input -> SHA-256; those that were not read or not to be hashed are not there.
        tool: Name and version of this program.
    """
    texts = {
        "README.md": model_card(plan, out.name, tool=tool),
        MANIFEST_FILE: json_text(manifest(plan, out, counts, diagnosis, digests, inputs=inputs, tool=tool)),
    }
    texts |= plan.side_texts
    if plan.config:
        texts["config.json"] = json_text(plan.config)
    layouts = {"": plan.layout, f"{PRECISION_FOLDER}/": plan.precision}
    for place, layout in layouts.items():
        index = layout.index() if layout is not None else None
        if index is not None:
            texts[f"{place}model.safetensors.index.json"] = index.decode("utf-8")
    if plan.precision is not None:
        prior = diagnosis.values["prior_precision"]
        texts[f"{PRECISION_FOLDER}/config.json"] = json_text({"kind": "precision", "prior_precision": prior})
    return texts


def json_text(content: object) -> str:
    """Return plain data as it stands in the files of an output."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
