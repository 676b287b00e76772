"""Labels of classifiers: a row of a head that is merged must stand for the same class in every model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from merge_cli.checkpoint import Checkpoint
from merge_cli.errors import CheckpointError
from merge_cli.plan.misfits import HEADS, exclusion_block
from merge_cli.recipe import Exclusion
from merge_cli.text import listed

# What a library calls the classes of a model that nobody gave names.
_NO_NAME = re.compile(r"label[ _]\d+")


def check_labels(parts: Sequence[Checkpoint], merged: Iterable[str], given: Sequence[Exclusion]) -> None:
    """Refuse models whose heads are merged and whose labels are others, or stand in another order.

    Labels that are only numbered say nothing, and a model that has no such labels is not compared.

    Args:
        parts: What is merged, the base first where its numbers enter.
        merged: Names of the tensors that go through the method.
        given: What the recipe excludes already.

    Raises:
        CheckpointError: With the labels of both, and a block for the recipe that keeps one model's head.
    """
    held = list(merged)
    named = [(part, labels) for part in parts if (labels := _labels(part.config)) and _heads(part, held, len(labels))]
    if not named:
        return
    first, wanted = named[0]
    for part, labels in named[1:]:
        if _plain(labels) == _plain(wanted) or len(labels) != len(wanted):
            continue
        heads = _heads(part, held, len(labels))
        same = sorted(_plain(labels)) == sorted(_plain(wanted))
        what = "has its classes in another order than" if same else "has other classes than"
        way = "bring the rows of one and its id2label into the order of the other, or keep" if same else "keep"
        raise CheckpointError(
            f"{part.label} {what} {first.label} (id2label): a row of '{heads[0]}' means another class in each\n"
            f"  {first.label}: {listed(wanted)}\n"
            f"  {part.label}: {listed(labels)}",
            hint=f"{way} one model's head as it is:\n{exclusion_block(held, heads, first.label, given)}",
        )


def _labels(config: Any) -> list[str]:
    """Return the labels in the order of rows; empty where there are none, or none that says anything."""
    by_number, by_label = config.get("id2label"), config.get("label2id")
    try:
        if isinstance(by_number, dict) and by_number:
            found = {int(number): str(label) for number, label in by_number.items()}
        elif isinstance(by_label, dict):
            found = {int(number): str(label) for label, number in by_label.items()}
        else:
            return []
    except (TypeError, ValueError):
        return []
    labels = [found[number][:100] for number in sorted(found)]
    whole = sorted(found) == list(range(len(found)))
    return labels if whole and not all(_NO_NAME.fullmatch(label) for label in _plain(labels)) else []


def _plain(labels: Sequence[str]) -> list[str]:
    return [re.sub(r"[\s_-]+", " ", label).strip().casefold() for label in labels]


def _heads(checkpoint: Checkpoint, names: Sequence[str], rows: int) -> list[str]:
    """Return which tensors have a row for each of so many classes."""
    return [
        name
        for name in names
        if any(part in name for part in HEADS)
        and (held := checkpoint.find(name)) is not None
        and held.shape[:1] == (rows,)
        and len(held.shape) <= 2
    ]
