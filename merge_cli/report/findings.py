"""Findings of a merge, as numbers and in sentences that name the models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from merge_cli.methods.contract import Diagnosis
from merge_cli.plan import MergePlan
from merge_cli.stream import StreamResult


def findings(plan: MergePlan, result: StreamResult) -> tuple[str, ...]:
    """Return what the method says of each model, of the merge, and of the elements that it counted."""
    return tuple(
        f"{output.prefix}{sentence}"
        for output in plan.variants
        for sentence in _findings(plan, result.outcomes[output.name].diagnosis, result.outcomes[output.name].counts)
    )


def predictions(plan: MergePlan, result: StreamResult) -> tuple[str, ...]:
    """Return what predicts failure."""
    each = ((output, result.outcomes[output.name].diagnosis.warnings) for output in plan.variants)
    return tuple(f"{output.prefix}{sentence}" for output, warnings in each for sentence in warnings)


def counts(result: StreamResult) -> dict[str, int]:
    """Return what the method counted, in all variants together."""
    total: Counter[str] = Counter()
    for outcome in result.outcomes.values():
        total.update(outcome.counts)
    return dict(total)


def diagnostics(plan: MergePlan, result: StreamResult) -> dict[str, Any]:
    """Return the method's numbers by name; those of variants under the name of each."""
    if plan.has_variants:
        return {name: dict(outcome.diagnosis.values) for name, outcome in result.outcomes.items()}
    return dict(result.diagnosis.values)


def _findings(plan: MergePlan, diagnosis: Diagnosis, counted: Mapping[str, int]) -> Iterator[str]:
    yield from _of_models(plan, diagnosis)
    yield from diagnosis.notes
    yield from _of_elements(plan, counted)


def _of_models(plan: MergePlan, diagnosis: Diagnosis) -> Iterator[str]:
    for label, said in zip(plan.labels, diagnosis.models, strict=False):
        if said:
            yield f"{label}: {said}"


def _of_elements(plan: MergePlan, counted: Mapping[str, int]) -> Iterator[str]:
    numel = sum(task.target.numel for task in plan.merged)
    for what, count in counted.items():
        if count:
            meaning = plan.method.counts.get(what, f"were {what.replace('_', ' ')}")
            yield f"{count:,} of {numel:,} elements {meaning}"
