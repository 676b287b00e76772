"""Decoding: from any source to float32 numbers, the only place that knows how.

A kind of source is a case in :func:`_fill`. Every number depends on its own place alone, never on where a run begins or
ends, so that a merge in other blocks gives the same bytes. Tensors that are stored as they are, which nearly all are,
take a shorter way: all models' rows are read side by side, and converted by one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merge_cli.checkpoint import DType, Reader, Source
from merge_cli.checkpoint.sources import BlockScaled, StoredTensor
from merge_cli.kernels import PATTERNS, Array, Backend, to_float32

_AT_A_TIME = 2**20


def decode_rows(
    sources: Sequence[Source],
    start: int,
    rows: Array,
    *,
    reader: Reader,
    raw: NDArray[np.uint8],
    backend: Backend,
    less: Array | None = None,
) -> list[int]:
    """Decode the same run of several tensors, and take the same from each.

    Args:
        sources: The tensors.
        start: First element.
        rows: Float32 of the backend, shape ``(len(sources), count)``, contiguous, overwritten.
        reader: Where the bytes come from.
        raw: Memory for bytes as they are stored, from :meth:`Backend.staging`.
        backend: What ``rows`` belong to.
        less: What is subtracted, shape ``(count,)``; None for nothing.

    Returns:
        How many numbers of each row are not finite as float32, before anything is subtracted.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    if len({(source.verbatim, source.dtype) for source in sources}) > 1:
        each = zip(sources, rows, strict=True)
        return [
            decode_rows([source], start, row[None], reader=reader, raw=raw, backend=backend, less=less)[0]
            for source, row in each
        ]
    dtype, host = sources[0].dtype, backend.shared(rows)
    if sources[0].verbatim and (dtype is not DType.F32 or host is None):
        stored = read_rows(sources, start, rows.shape[1], reader, raw)
        return backend.to_float32(stored, dtype.torch_name, less, rows)
    # What is float32 already, or made so here, is put in its place at once.
    if host is not None:
        for source, row in zip(sources, host, strict=True):
            _fill(source, start, row, reader)
        return backend.to_float32(rows, DType.F32.torch_name, less, rows)
    made = np.stack([read_numbers(source, start, rows.shape[1], reader) for source in sources])
    return backend.to_float32(made, DType.F32.torch_name, less, rows)


def read_rows(
    sources: Sequence[Source], start: int, count: int, reader: Reader, raw: NDArray[np.uint8]
) -> NDArray[Any]:
    """Read one run of verbatim tensors of one dtype as they are stored, shape ``(len(sources), count)``.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    dtype = sources[0].dtype
    nbytes = count * dtype.itemsize
    view = raw.data
    for i, source in enumerate(sources):
        for path, offset, _ in source.byte_ranges(start, count):
            reader.read_raw(view[i * nbytes : (i + 1) * nbytes], path, offset)
    return typed(raw[: len(sources) * nbytes], dtype).reshape(len(sources), -1)


def typed(raw: NDArray[np.uint8], dtype: DType) -> NDArray[Any]:
    """Return bytes as the elements of a dtype, in numpy's patterns; as bytes where it is no float."""
    return raw.view(PATTERNS.get(dtype.torch_name, np.uint8))


def read_numbers(
    source: Source, start: int, count: int, reader: Reader, dtype: type[np.floating[Any]] = np.float32
) -> NDArray[Any]:
    """Return a run of a tensor as numbers, in memory of its own: for a look at a few.

    Args:
        source: The tensor.
        start: First element.
        count: How many.
        reader: Where the bytes come from.
        dtype: ``float32``, in which tensors are merged, or ``float64``, which holds whatever is stored.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    out = np.empty(count, dtype)
    _fill(source, start, out, reader)
    return out


def read_integers(source: Source, start: int, count: int, reader: Reader) -> NDArray[Any]:
    """Return a run of a tensor of integers, or of truth values as 0 and 1, exactly.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    raw = reader.read_bytes(source, start, count)
    return np.frombuffer(raw, np.uint8 if source.dtype is DType.BOOL else source.dtype.torch_name)


def read_whole(source: Source, reader: Reader, dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
    """Return all of a tensor as numbers in its shape; see :func:`read_numbers`."""
    return read_numbers(source, 0, source.numel, reader, dtype).reshape(source.shape)


def is_finite(source: Source, reader: Reader) -> bool:
    """Tell whether every number of a tensor is finite in float32; integers are.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    return not source.dtype.is_float or all(np.isfinite(numbers).all() for numbers in in_blocks(source, reader))


def in_blocks(source: Source, reader: Reader, dtype: type[np.floating[Any]] = np.float32) -> Iterator[NDArray[Any]]:
    """Yield all of a tensor as numbers, a piece at a time; see :func:`read_numbers`."""
    for start in range(0, source.numel, _AT_A_TIME):
        yield read_numbers(source, start, min(_AT_A_TIME, source.numel - start), reader, dtype)


def _fill(source: Source, start: int, out: NDArray[Any], reader: Reader) -> None:
    """Decode the elements of a source from ``start`` into ``out``, shape ``(count,)``."""
    match source:
        case StoredTensor():
            _fill_stored(source, start, out, reader)
        case BlockScaled():
            _fill_stored(source.stored, start, out, reader)
            _scale(source, start, out, reader)


def _fill_stored(source: StoredTensor, start: int, out: NDArray[Any], reader: Reader) -> None:
    wanted = {DType.F32: np.float32, DType.F64: np.float64}.get(source.dtype)
    if wanted is out.dtype.type:
        reader.read_raw(out.data.cast("B"), source.file, source.offset + start * source.itemsize)
        return
    raw = reader.read_bytes(source, start, len(out))
    if not raw:
        return
    stored = np.frombuffer(raw, PATTERNS[source.dtype.torch_name])
    if out.dtype == np.float64 and source.dtype is not DType.F64:
        narrow = np.empty(len(out), np.float32)
        to_float32(stored[None], source.dtype.torch_name, narrow[None])  # type: ignore[arg-type]
        out[:] = narrow
    else:
        to_float32(stored[None], source.dtype.torch_name, out[None])  # type: ignore[arg-type]


def _scale(source: BlockScaled, start: int, out: NDArray[Any], reader: Reader) -> None:
    """Multiply elements with the scales of their tiles."""
    if not len(out):
        return
    first, count = source.scale_span(start, len(out))
    scales = read_numbers(source.scales, first, count, reader, out.dtype.type)
    if source.scales.numel == 1:
        out *= scales[0]
        return
    columns = source.matrix[1]
    width = -(-columns // source.tile[1])
    by_row = scales.reshape(-1, width)
    top = source.scale_row(start // columns)
    for first_row, rows in _tile_rows(source, start, len(out)):
        factors = np.repeat(by_row[source.scale_row(first_row) - top], source.tile[1])[:columns]
        low, high = max(first_row * columns, start), min((first_row + rows) * columns, start + len(out))
        _multiply(out[low - start : high - start], low % columns, factors)


def _tile_rows(source: BlockScaled, start: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield runs of rows that share their scales, as (first row, rows), of those in which elements stand."""
    columns = source.matrix[1]
    row, last = start // columns, (start + count - 1) // columns
    while row <= last:
        end = row + 1
        while end <= last and source.scale_row(end) == source.scale_row(row):
            end += 1
        yield row, end - row
        row = end


def _multiply(run: NDArray[Any], at: int, factors: NDArray[Any]) -> None:
    """Multiply a run of elements, which begins in column ``at``, with the factors of the columns."""
    columns = len(factors)
    head = min(len(run), (columns - at) % columns)
    run[:head] *= factors[at : at + head]
    whole = (len(run) - head) // columns * columns
    rows = run[head : head + whole].reshape(-1, columns)
    rows *= factors
    tail = run[head + whole :]
    tail *= factors[: len(tail)]
