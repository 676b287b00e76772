"""Rules of sources: whatever a tensor is made of, its numbers do not depend on where they are cut."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from merge_cli.checkpoint import Reader, Source
from merge_cli.kernels import Array, backend_for
from merge_cli.stream.decode import decode_rows, read_numbers, read_whole
from merge_cli.testing.draws import each_of
from merge_cli.testing.rules import require


def check_source(source: Source, reader: Reader, *, expected: NDArray[np.float64] | None = None) -> None:
    """Check a source of a kind that :mod:`merge_cli.stream.decode` knows.

    Args:
        source: The source.
        reader: Of its files.
        expected: Its numbers by definition, in float64 and in its shape; None to leave them unchecked.

    Raises:
        RuleBroken: At the first rule that is broken.
    """
    check_source_is_data(source)
    check_bytes_behind(source)
    whole = read_whole(source, reader)
    require(
        whole.shape == source.shape and source.numel == math.prod(source.shape),
        f"'{source.name}' says shape {source.shape} and {source.numel} numbers, and decodes to shape {whole.shape}",
        hint="give the shape of what is decoded",
    )
    if expected is not None:
        _check_numbers(source, whole, expected)
    check_any_cut(source, reader)


def check_source_is_data(source: Source) -> None:
    """Check that a source is plain frozen data: it is sent to workers, compared, and renamed."""
    same = pickle.loads(pickle.dumps(source))
    require(
        same == source and hash(same) == hash(source),
        f"'{source.name}' is not the same after pickling",
        hint="make it a frozen dataclass of plain values",
    )
    other = source.named("another name")
    require(
        (other.name, other.shape, other.dtype) == ("another name", source.shape, source.dtype)
        and other.named(source.name) == source,
        f"'{source.name}' under another name is {other}",
        hint="let named() change the name and nothing else",
    )


def check_bytes_behind(source: Source) -> None:
    """Check that the bytes behind all elements lie in files, and are those of the stored tensors behind the source."""
    whole = list(source.byte_ranges(0, source.numel))
    for path, offset, nbytes in whole:
        size = path.stat().st_size
        require(
            offset >= 0 and offset + nbytes <= size,
            f"'{source.name}' lies at {offset} to {offset + nbytes} of {path}, which has {size} bytes",
            hint="give ranges within the file",
        )
    behind = sum(nbytes for *_, nbytes in whole)
    require(
        behind == source.nbytes == sum(leaf.nbytes for leaf in source.leaves),
        f"'{source.name}' says {source.nbytes} bytes, its ranges have {behind} and the stored tensors behind it "
        f"{sum(leaf.nbytes for leaf in source.leaves)}",
        hint="name in leaves and byte_ranges all that is read, once",
    )


def _check_numbers(source: Source, found: NDArray[Any], expected: NDArray[np.float64]) -> None:
    # Half a unit in the last place for each of a few roundings.
    off = np.abs(found - expected) - 2.0**-22 * np.abs(expected)
    require(
        found.shape == expected.shape and (off.size == 0 or off.max() <= 0),
        f"the numbers of '{source.name}' are not those of its definition: shapes {found.shape} and {expected.shape}, "
        f"the largest difference {np.abs(found - expected).max() if found.shape == expected.shape else '-'}",
        hint="compare what decode does with the definition",
    )


def check_any_cut(source: Source, reader: Reader) -> None:
    """Check that any run has the numbers, to the bit, that it has in the whole, however it is read."""
    narrow = read_numbers(source, 0, source.numel, reader, np.float32)
    wide = read_numbers(source, 0, source.numel, reader, np.float64)

    def example(data: st.DataObject) -> None:
        start = data.draw(st.integers(0, source.numel))
        count = data.draw(st.integers(0, min(700, source.numel - start)))
        for how, run, whole in (
            ("read in float32", read_numbers(source, start, count, reader, np.float32), narrow),
            ("read in float64", read_numbers(source, start, count, reader, np.float64), wide),
            ("read to be merged", _as_merged(source, start, count, reader), narrow),
        ):
            require(
                run.tobytes() == whole[start : start + count].tobytes(),
                f"elements {start} to {start + count} of '{source.name}', {how}, differ from those of the whole",
                hint="let every number depend on its own place alone: no sums or products whose order depends on a run",
            )

    each_of(60, example)


def _as_merged(source: Source, start: int, count: int, reader: Reader) -> NDArray[np.float32]:
    """Return a run as workers read it."""
    if count == 0:
        return np.empty(0, np.float32)
    rows: NDArray[np.float32] = np.empty((1, count), np.float32)
    backend = backend_for("cpu")
    array: Array = backend.from_numpy(rows)
    decode_rows([source], start, array, reader=reader, raw=backend.staging(8 * count), backend=backend)
    return rows.reshape(-1)
