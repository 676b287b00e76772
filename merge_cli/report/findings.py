"""What a merge has found out about itself, in sentences that name the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from merge_cli.methods.contract import Diagnosis
from merge_cli.plan import MergePlan


def findings(plan: MergePlan, diagnosis: Diagnosis, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return what the method says of each model, of the merge, and of the elements that it counted."""
    return (*_of_models(plan, diagnosis), *diagnosis.notes, *_of_elements(plan, counts))


def _of_models(plan: MergePlan, diagnosis: Diagnosis) -> Iterator[str]:
    labels = {each.role: each.label for each in plan.inputs}
    for i, said in enumerate(diagnosis.models):
        if said:
            yield f"{labels[f'model {i}']}: {said}"


def _of_elements(plan: MergePlan, counts: Mapping[str, int]) -> Iterator[str]:
    numel = sum(task.target.numel for task in plan.merged)
    for what, count in counts.items():
        if count:
            meaning = plan.method.counts.get(what, f"were {what.replace('_', ' ')}")
            yield f"{count:,} of {numel:,} elements {meaning}"
