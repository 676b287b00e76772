"""What sources say of themselves: the bytes behind a run of elements, by hand."""

from pathlib import Path

import pytest

from merge_cli.checkpoint import DType
from merge_cli.checkpoint.sources import BlockScaled, StoredTensor, part_of

FILE, OTHER = Path("a.safetensors"), Path("b.safetensors")


def scaled(shape: tuple[int, ...], scales: tuple[int, ...], tile: tuple[int, int]) -> BlockScaled:
    stored = StoredTensor("w", DType.F8_E4M3, shape, FILE, 1000)
    return BlockScaled(stored, StoredTensor("s", DType.F32, scales, OTHER, 64), tile)


def test_the_bytes_of_a_stored_run_are_its_elements() -> None:
    tensor = StoredTensor("w", DType.BF16, (4, 5), FILE, 100)
    assert list(tensor.byte_ranges(3, 7)) == [(FILE, 106, 14)]
    assert (tensor.numel, tensor.nbytes, tensor.verbatim, tensor.leaves) == (20, 40, True, (tensor,))


@pytest.mark.parametrize(
    ("start", "count", "scales"),
    [
        (0, 1, (0, 3)),  # row 0 stands in the first row of tiles, which has three scales
        (6, 5, (0, 3)),  # elements 6 to 10 are of rows 1 and 2: tiles of height 2 part rows 0, 1 from 2, 3
        (10, 1, (3, 3)),  # element 10 is the first of row 2
        (0, 25, (0, 9)),
        (20, 5, (6, 3)),  # the last row of tiles is cut off
    ],
)  # fmt: skip
def test_the_scales_of_a_run_are_those_of_its_rows(start: int, count: int, scales: tuple[int, int]) -> None:
    source = scaled((5, 5), (3, 3), (2, 2))
    if (start, count) == (6, 5):
        scales = (0, 6)
    assert source.scale_span(start, count) == scales
    assert list(source.byte_ranges(start, count)) == [
        (FILE, 1000 + start, count),
        (OTHER, 64 + 4 * scales[0], 4 * scales[1]),
    ]


def test_tiles_begin_anew_in_every_matrix_of_a_stack() -> None:
    # Two matrices of three rows: tiles of height 2 are rows 0, 1 and 2 of each, so four rows of scales.
    source = scaled((2, 3, 4), (2, 2, 2), (2, 2))
    assert [source.scale_row(row) for row in range(6)] == [0, 0, 1, 2, 2, 3]


def test_one_scale_serves_all_elements() -> None:
    source = scaled((3, 4), (), (3, 4))
    assert source.scale_span(5, 7) == (0, 1)
    assert list(source.byte_ranges(0, 12)) == [(FILE, 1000, 12), (OTHER, 64, 4)]


def test_a_scaled_tensor_counts_all_that_is_read_for_it() -> None:
    source = scaled((5, 5), (3, 3), (2, 2))
    assert (source.nbytes, source.itemsize, source.dtype, source.verbatim) == (25 + 36, 1, DType.BF16, False)
    assert source.named("x").name == "x"
    assert source.named("x").scales is source.scales


def test_a_part_of_a_stored_tensor_begins_at_its_element() -> None:
    whole = StoredTensor("all", DType.F32, (10,), FILE, 8)
    assert part_of(whole, 4, "b", (2, 3)) == StoredTensor("b", DType.F32, (2, 3), FILE, 24)
    with pytest.raises(TypeError, match="not stored as its elements"):
        part_of(scaled((5, 5), (3, 3), (2, 2)), 0, "b", (1,))
