"""The model card of a merged checkpoint."""

from __future__ import annotations

from pathlib import Path

import yaml

from merge_cli.plan import MergePlan
from merge_cli.report.manifest import MANIFEST_FILE
from merge_cli.text import format_count, printable


def model_card(plan: MergePlan, name: str, *, tool: str) -> str:
    """Return ``README.md``: front matter that the hub understands, what was done, and the recipe.

    Args:
        plan: What was done.
        name: What the output is called.
        tool: Name and version of this program.
    """
    method = plan.method
    labels = list(dict.fromkeys(each.label for each in plan.inputs if each.role.is_model))
    on_hub = list(dict.fromkeys(label.partition("@")[0] for label in labels if _looks_like_hub_id(label, plan)))
    front = {
        "base_model": on_hub,
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "merge-cli", plan.recipe.merge_method],
    }
    if not on_hub:
        del front["base_model"], front["base_model_relation"]
    manifest = f"../{MANIFEST_FILE}" if plan.has_variants else MANIFEST_FILE
    parameters = sum(task.target.numel for task in plan.tasks)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {printable(name)}",
        "",
        f"A merge of {plan.n or 1} model{'s' if plan.n > 1 else ''} by `{plan.recipe.merge_method}` "
        f"({method.summary}), made with {tool}.",
        "",
        f"    {method.equation}",
        "",
        f"Source: {method.source}.",
        "",
        "| role | checkpoint |",
        "|---|---|",
        *(f"| {each.role} | `{each.label}` |" for each in plan.inputs),
        "",
        f"{format_count(parameters)} parameters; {len(plan.merged)} tensors merged, "
        f"{len(plan.tasks) - len(plan.merged)} copied. `{manifest}` records inputs, parameters and digests.",
        "",
        "## Recipe",
        "",
        "```yaml",
        plan.recipe.origin.text.strip() or _as_yaml(plan),
        "```",
        "",
        *_overrides(plan),
    ]
    return "\n".join(lines)


def _overrides(plan: MergePlan) -> list[str]:
    """Say what differs from the recipe as it stands above."""
    if not plan.recipe.origin.overrides:
        return []
    return ["Changed with `--set`:", "", *(f"- `{override}`" for override in plan.recipe.origin.overrides), ""]


def _as_yaml(plan: MergePlan) -> str:
    return yaml.safe_dump(plan.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)).strip()


def _looks_like_hub_id(label: str, plan: MergePlan) -> bool:
    """Tell whether a label names a hub repository: two parts, and no path on this machine."""
    parts = label.partition("@")[0].split("/")
    local = Path(label).exists() or (plan.recipe.origin.folder / label).exists()
    return len(parts) == 2 and all(parts) and not label.startswith((".", "~", "/")) and not local
