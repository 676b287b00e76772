"""Block sizes keep to the memory budget."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_cli.errors import ResourceError
from merge_cli.kernels import GRAIN
from merge_cli.methods.contract import Input, Scope
from merge_cli.plan.blocks import Blocks, block_numel, bytes_per_element, choose_blocks, unit_of

NEEDS = st.frozensets(st.sampled_from(list(Input)), min_size=1)
ROWS_PER_MODEL = {Input.MODELS, Input.DELTAS, Input.FISHER, Input.CURVATURE, Input.GRADIENTS}


def choose(
    memory: int, *, threads: int = 1, scope: Scope = Scope.ELEMENT, row: int = 1000, tensor: int = 10**9
) -> Blocks:
    each = bytes_per_element(frozenset({Input.BASE, Input.DELTAS}), 3)
    units = [unit_of(scope, (-(-tensor // row), row) if tensor > row else (tensor,))]
    return choose_blocks(each=each, units=units, n=3, memory=memory, threads=threads)


@given(
    needs=NEEDS,
    n=st.integers(1, 12),
    scope=st.sampled_from(Scope),
    row=st.integers(1, 10**6),
    rows=st.integers(1, 10**4),
    memory=st.integers(1, 2**36),
    threads=st.integers(1, 256),
)
def test_what_is_chosen_never_exceeds_the_budget(
    needs: frozenset[Input], n: int, scope: Scope, row: int, rows: int, memory: int, threads: int
) -> None:
    tensor = row * rows

    unit = unit_of(scope, (rows, row))

    def chosen(budget: int) -> Blocks:
        return choose_blocks(each=bytes_per_element(needs, n), units=[unit], n=n, memory=budget, threads=threads)

    try:
        blocks = chosen(memory)
    except ResourceError as error:
        # What the hint asks for is enough, and it is more than was given.
        wanted = int(re.search(r"--memory (\d+)MiB", error.hint or "")[1]) * 2**20  # type: ignore[index]
        assert wanted > memory
        assert chosen(wanted).threads >= 1
        return
    assert 1 <= blocks.threads <= threads
    numel = block_numel(unit, tensor, blocks.numel)
    assert numel >= 1
    assert blocks.buffer_bytes <= memory
    # At the very least a worker holds one float32 row for each thing read.
    held = len(needs & ROWS_PER_MODEL) * n
    assert blocks.threads * numel * 4 * held <= memory
    if scope is Scope.ELEMENT:
        assert numel % GRAIN == 0 or numel == tensor
    if scope is Scope.ROW:
        assert numel % row == 0
    if scope is Scope.TENSOR:
        assert numel == tensor


def test_a_budget_that_is_too_small_is_an_error_that_says_how_much_is_needed() -> None:
    with pytest.raises(ResourceError) as caught:
        choose(1000)
    assert caught.value.exit_code == 4
    assert re.search(r"a block of \d+ elements of 3 models takes .*, --memory allows 1.0 kB", str(caught.value))
    assert re.search(r"hint: give --memory \d+MiB or more", str(caught.value))


def test_less_memory_means_smaller_blocks_then_fewer_threads() -> None:
    roomy, tight, least = choose(2**30, threads=8), choose(12 * 2**20, threads=8), choose(2 * 2**20, threads=8)
    assert roomy.numel > tight.numel >= least.numel
    assert roomy.threads == tight.threads == 8
    assert least.threads < 8


def test_tensors_smaller_than_a_grain_need_no_grain() -> None:
    assert choose(10_000, tensor=7).numel == 7


def test_a_method_that_sees_whole_tensors_says_what_the_largest_takes() -> None:
    with pytest.raises(ResourceError, match="a block of 1000000000 elements"):
        choose(2**30, scope=Scope.TENSOR)
