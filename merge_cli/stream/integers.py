"""Whether integers, which are copied and not merged, are the same in every model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from merge_cli.checkpoint import DType, Reader, StoredTensor
from merge_cli.plan import MergePlan
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
            found[task.place.name] = [labels[twin.file] for twin in others]
    if found:
        models = listed(dict.fromkeys(label for each in found.values() for label in each), most=3)
        source = next(task.copied for task in plan.tasks if task.place.name in found)
        assert source is not None
        yield (
            f"{listed(found, most=3)}: whole numbers are not merged but copied from {labels[source.file]}; those of "
            f"{models} are others"
        )


def _differ(reader: Reader, one: StoredTensor, other: StoredTensor) -> bool:
    if (one.file, one.offset) == (other.file, other.offset):
        return False
    return any(
        not np.array_equal(_read(reader, one, start), _read(reader, other, start))
        for start in range(0, one.numel, _RUN)
    )


def _read(reader: Reader, tensor: StoredTensor, start: int) -> NDArray[np.generic]:
    raw = bytearray(min(_RUN, tensor.numel - start) * tensor.dtype.itemsize)
    reader.read_into(memoryview(raw), tensor, start)
    return np.frombuffer(raw, np.uint8 if tensor.dtype is DType.BOOL else tensor.dtype.torch_name)
