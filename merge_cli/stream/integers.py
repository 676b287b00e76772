"""Comparison of integer tensors, which are copied and not merged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from merge_cli.checkpoint import Reader, Source
from merge_cli.plan import MergePlan
from merge_cli.stream.decode import read_integers
from merge_cli.text import listed

# Elements read at a time.
_RUN = 2**17


def differing_integers(plan: MergePlan, reader: Reader) -> Iterator[str]:
    """Yield a warning that names tensors of integers, or of truth values, whose numbers are not the same everywhere.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    labels = {file.path: each.label for each in plan.inputs for file in each.files}
    found: dict[str, list[str]] = {}
    for task in plan.tasks:
        others = [twin for twin in task.twins if task.copied is not None and _differ(reader, task.copied, twin)]
        if others:
            found[task.target.name] = [labels[twin.file] for twin in others]
    if found:
        models = listed(dict.fromkeys(label for each in found.values() for label in each), most=3)
        source = next(task.copied for task in plan.tasks if task.target.name in found)
        assert source is not None
        yield (
            f"{listed(found, most=3)}: whole numbers are not merged but copied from {labels[source.file]}; those of "
            f"{models} are others"
        )


def _differ(reader: Reader, one: Source, other: Source) -> bool:
    if [(leaf.file, leaf.offset) for leaf in one.leaves] == [(leaf.file, leaf.offset) for leaf in other.leaves]:
        return False
    return any(
        not np.array_equal(read_integers(one, start, count, reader), read_integers(other, start, count, reader))
        for start in range(0, one.numel, _RUN)
        if (count := min(_RUN, one.numel - start))
    )
