"""How tensors are cut: into ranges, of which one job does each, and those into blocks."""

from __future__ import annotations

from merge_cli.stream.journal import Span

_BLOCKS_PER_RANGE = 16
# A read of this many elements costs about twice what a read of one costs.
_SHORTEST_RUN = 4096
_RUNS = 16


def ranges(span: Span, block_numel: int) -> list[Span]:
    """Cut a run of elements, as (start, count), into what one job does."""
    return _cut(span, block_numel * _BLOCKS_PER_RANGE)


def blocks(span: Span, block_numel: int) -> list[Span]:
    """Cut a range into blocks."""
    return _cut(span, block_numel)


def pieces(numel: int, wanted: int) -> list[Span]:
    """Spread about ``wanted`` elements evenly over a tensor, in a few runs."""
    run = max(_SHORTEST_RUN, wanted // _RUNS)
    runs = max(1, wanted // run)
    if numel <= runs * run:
        return _cut((0, numel), run)
    return [(numel * number // runs, run) for number in range(runs)]


def _cut(span: Span, step: int) -> list[Span]:
    start, count = span
    return [(start + offset, min(step, count - offset)) for offset in range(0, count, step)]
