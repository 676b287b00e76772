"""What a method sees of a tensor."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from merge_cli.kernels import chunk_sums
from merge_cli.methods.contract import Block, Input, Masks, Measured, MeasureOver, Totals, measure_sums
from tests import oracle

ROWS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def block(start: int = 0) -> Block:
    return Block({Input.DELTAS: ROWS}, Masks(0, 0, "w", 2, start))


def test_what_was_declared_is_there_and_says_how_large_it_is() -> None:
    assert block().deltas is ROWS
    assert (block().n, block().numel, block().device.type) == (2, 3, "cpu")
    assert block().has(Input.DELTAS)
    assert not block().has(Input.BASE)


@pytest.mark.parametrize("need", [need for need in Input if need is not Input.DELTAS])
def test_what_was_not_declared_is_refused_with_the_way_to_declare_it(need: Input) -> None:
    what = rf"reads block\.{need.value} without declaring it; add Input\.{need.name} to"
    with pytest.raises(LookupError, match=what):
        getattr(block(), need.value)


def test_one_number_per_model_becomes_a_column() -> None:
    assert block().column([10, 0.5]).tolist() == [[10.0], [0.5]]
    assert (block().column([10, 0.5]) * ROWS).tolist() == [[10, 20, 30], [2, 2.5, 3]]


def test_masks_are_those_of_the_elements_place_in_the_tensor() -> None:
    whole = [oracle.keep_mask((0, 0, model, "w"), 1003, density) for model, density in ((0, 0.5), (1, 0.25))]
    assert block().keep_mask([0.5, 0.25]).tolist() == [row[:3] for row in whole]
    assert block(start=1000).keep_mask([0.5, 0.25]).tolist() == [row[1000:] for row in whole]


def test_a_mask_needs_a_density_for_every_model() -> None:
    with pytest.raises(ValueError, match="zip"):
        block().keep_mask([0.5])


def test_counts_add_up() -> None:
    b = block()
    b.count("even", ROWS % 2 == 0)
    b.count("even", ROWS[0] == 2)
    assert b.counts == {"even": 4}


def test_sums_over_the_model_are_exact_in_whatever_pieces_they_are_collected() -> None:
    sums: dict[str, Any] = {}
    for values in ([1e16, 1.0], [-1e16], [2.0**-30] * 3):
        numbers = torch.tensor(values, dtype=torch.float64)
        for number in numbers:
            Block({Input.BASE: numbers}, Masks(0, 0, "w", 2, 0), sums=sums).add("total", number[None])
    assert math.fsum(sums["total"]) == 1 + 3 * 2.0**-30


def test_what_is_emitted_is_kept_by_its_name() -> None:
    b = block()
    b.emit("precision", ROWS[0])
    assert {name: values.tolist() for name, values in b.emitted.items()} == {"precision": [1, 2, 3]}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_measure_of_sums_is_exact_however_many_parts_there_are(threads: int) -> None:
    # More parts than are kept apart, in shares that are combined at the end.
    found = measure_sums(frozenset({Input.BASE}), MeasureOver.TENSOR, once_and_twice, everything_given)
    numbers = [1e8, *(k / 7 for k in range(1700)), -1e8, 1e-8]
    blocks = [Block({Input.BASE: torch.tensor([x, 1e-9])}, Masks(0, 0, "w", 1, 0)) for x in numbers]
    state = found.start(Totals(1, len(blocks)), "parameters")
    parts: list[Any] = [None] * threads
    for i, each in enumerate(blocks):
        parts[i % threads] = found.fold(state, parts[i % threads], each, None)
    total = math.fsum(math.fsum(each.base.tolist()) for each in blocks)
    assert found.finish(state, functools.reduce(found.combine, parts)) == Measured((1, "parameters", total, 2 * total))


def once_and_twice(b: Block, _: Any) -> torch.Tensor:
    return chunk_sums(torch.stack([b.base, 2 * b.base]))


def everything_given(totals: Totals, params: Any, sums: list[float]) -> tuple[Any, ...]:
    return totals.n, params, *sums
