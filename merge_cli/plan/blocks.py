"""How large a block may be."""

from __future__ import annotations

from dataclasses import dataclass

from merge_cli.errors import ResourceError
from merge_cli.kernels import GRAIN
from merge_cli.methods.contract import Need, Scope
from merge_cli.text import format_bytes

# Three quarters of a megabyte per row: larger blocks leave a core's cache, smaller ones spend more on calls. Best by a
# few percent of 131,072, 196,608 and 262,144, for ties and dare_ties; the simpler methods do not mind.
_BEST_BLOCK = 12 * GRAIN
# Read and write buffers, at the widest dtype.
_RAW_BYTES = 16


@dataclass(frozen=True, slots=True)
class Blocks:
    """Block size in elements, workers, and what the buffers of all workers take."""

    numel: int
    threads: int
    buffer_bytes: int


def bytes_per_element(needs: frozenset[Need], n: int) -> int:
    """Return what a worker holds per element: rows in float32, as much again for temporaries, and raw buffers."""
    per_model = sum(need in needs for need in (Need.FISHER, Need.CURVATURE, Need.GRADIENTS)) + 1
    rows = n * per_model + 3
    return 4 * rows * 2 + _RAW_BYTES


def choose_blocks(
    *, needs: frozenset[Need], n: int, scope: Scope, largest_row: int, largest_tensor: int, memory: int, threads: int
) -> Blocks:
    """Choose block size and workers so that all buffers fit into ``memory`` bytes.

    Args:
        needs: What is read.
        n: Number of models.
        scope: What a block must hold at least.
        largest_row: Elements of the longest row of any tensor.
        largest_tensor: Elements of the largest tensor.
        memory: Budget in bytes.
        threads: Workers wanted.

    Raises:
        ResourceError: If not even one worker's smallest block fits; says how much is needed.
    """
    each = bytes_per_element(needs, n)
    least = {Scope.ELEMENT: min(GRAIN, largest_tensor), Scope.ROW: largest_row, Scope.TENSOR: largest_tensor}[scope]
    least = max(1, least)
    if memory < least * each:
        raise ResourceError(
            f"a block of {least} elements of {n} models takes {format_bytes(least * each)}, --memory allows "
            f"{format_bytes(memory)}",
            hint=f"give --memory {-(-least * each // 2**20)}MiB or more",
        )
    threads = min(threads, memory // (least * each))
    fitting = memory // (each * threads)
    if scope is Scope.TENSOR:
        numel = least
    elif scope is Scope.ROW:
        numel = max(1, min(fitting, _BEST_BLOCK) // least) * least
    else:
        numel = max(least, min(fitting, _BEST_BLOCK) // GRAIN * GRAIN)
    return Blocks(numel, threads, numel * each * threads)
