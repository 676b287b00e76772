"""Block sizes: how much of each tensor is merged at a time, so that the buffers of all workers fit into the budget.

Every tensor has a unit, the fewest elements that its method may see at once: a grain where any run of elements will do,
whole rows, or the whole tensor. A block is as many units as come close to one size for all tensors. So a wide tensor
does not decide how a narrow one is cut, and rows are never cut in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from merge_cli.errors import ResourceError
from merge_cli.kernels import GRAIN
from merge_cli.methods.contract import COMPANIONS, Input, Scope
from merge_cli.text import format_bytes

# Three quarters of a megabyte per row: larger blocks leave a core's cache, smaller ones spend more on calls. Best by a
# few percent of 131,072, 196,608 and 262,144, for ties and dare_ties; the simpler methods do not mind.
_BEST_BLOCK = 12 * GRAIN
# Read and write buffers, at the widest dtype.
_RAW_BYTES = 16
# Blocks of rows start at multiples of this many elements too: vectorised code and the scalar code that takes the last
# few elements of a block round exponentials and logarithms differently.
_LANES = 64


@dataclass(frozen=True, slots=True)
class Blocks:
    """The size of blocks in elements, where a tensor's unit allows it; workers, and what all their buffers take."""

    numel: int
    threads: int
    buffer_bytes: int


def unit_of(scope: Scope, shape: tuple[int, ...]) -> int:
    """Return the fewest elements of a tensor that a method may see at once, at least 1.

    Args:
        scope: What the method must see of this tensor.
        shape: The tensor's; one of fewer than two dimensions is a single row.
    """
    numel = max(1, math.prod(shape))
    if scope is Scope.TENSOR or len(shape) < 2:
        return numel if scope is not Scope.ELEMENT else min(GRAIN, numel)
    return min(numel, math.lcm(max(1, shape[-1]), _LANES) if scope is Scope.ROW else GRAIN)


def block_numel(unit: int, numel: int, target: int) -> int:
    """Return the elements of a tensor's blocks: as many units as ``target`` holds, at least one, at most all.

    Args:
        unit: From :func:`unit_of`.
        numel: Elements of the tensor.
        target: The size that is aimed at, from :func:`choose_blocks`.
    """
    return max(1, min(numel, max(unit, target // unit * unit)))


def bytes_per_element(needs: frozenset[Input], n: int, workspace: float | None = None) -> int:
    """Return what a worker holds per element of a block: rows in float32, temporaries, and raw buffers.

    Args:
        needs: What is read.
        n: Number of models.
        workspace: Float32 numbers that the method's temporaries take per element; None for as many as the rows.
    """
    per_model = sum(each in needs for companion in COMPANIONS for each in companion.inputs) + 1
    rows = n * per_model + 3
    return math.ceil(4 * (rows + (rows if workspace is None else workspace))) + _RAW_BYTES


def choose_blocks(*, each: int, units: Iterable[int], n: int, memory: int, threads: int) -> Blocks:
    """Choose block size and workers so that all buffers fit into ``memory`` bytes.

    Args:
        each: Bytes per element, from :func:`bytes_per_element`.
        units: The units of all tensors that are merged.
        n: Number of models, for the error.
        memory: Budget in bytes.
        threads: Workers wanted.

    Raises:
        ResourceError: If not even one worker's largest unit fits; says how much is needed.
    """
    least = max(units, default=1)
    if memory < least * each:
        raise ResourceError(
            f"a block of {least} elements of {n} models takes {format_bytes(least * each)}, --memory allows "
            f"{format_bytes(memory)}",
            hint=f"give --memory {-(-least * each // 2**20)}MiB or more",
        )
    threads = min(threads, memory // (least * each))
    fitting = memory // (each * threads)
    target = max(min(GRAIN, least), min(fitting, _BEST_BLOCK) // GRAIN * GRAIN)
    return Blocks(target, threads, max(least, target) * each * threads)
