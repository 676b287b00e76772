"""Sources: what a tensor of a checkpoint is made of, as data.

A source has a name, a shape and a dtype, and says which bytes of which files stand behind a run of its elements: to
read ahead, to drop pages, to tell one input from another, to know the cost. It reads nothing. How bytes become numbers
is known to one interpreter, :mod:`merge_cli.stream.decode`; whatever lies between treats all sources alike.

A new kind is one dataclass here, one case there, and a view (:mod:`merge_cli.checkpoint.views`) that makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from merge_cli.checkpoint.dtypes import DType
from merge_cli.checkpoint.extent import Extent

# A file, the offset of its first byte, and how many bytes.
ByteRange = tuple[Path, int, int]


@dataclass(frozen=True, slots=True)
class StoredTensor(Extent):
    """Numbers as a file holds them."""

    @property
    def itemsize(self) -> int:
        """Bytes that are read for an element."""
        return self.dtype.itemsize

    @property
    def verbatim(self) -> bool:
        """Tell whether the bytes are the elements in ``dtype``, so that they may be copied."""
        return True

    @property
    def leaves(self) -> tuple[StoredTensor, ...]:
        """The stored tensors behind it."""
        return (self,)

    @property
    def constants(self) -> tuple[int, ...]:
        """Numbers that decide the elements beside the bytes of the leaves."""
        return ()

    def named(self, name: str) -> StoredTensor:
        """Return it under another name."""
        return replace(self, name=name)

    def byte_ranges(self, start: int, count: int) -> Iterator[ByteRange]:
        """Yield the bytes behind ``count`` elements from ``start``."""
        yield self.file, self.offset + start * self.dtype.itemsize, count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class BlockScaled:
    """Narrow numbers times the scale of the tile in which they stand: w[r, c] = stored[r, c] · scales[r // h, c // w].

    Attributes:
        stored: The narrow numbers, shape ``(..., rows, columns)``.
        scales: Shape ``(..., ceil(rows / h), ceil(columns / w))``, or with a single element for the whole tensor.
        tile: Its height and width ``(h, w)``; the last tiles of a row or column may be cut off.
    """

    stored: StoredTensor
    scales: StoredTensor
    tile: tuple[int, int]

    @property
    def name(self) -> str:
        """The name of the narrow numbers."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the narrow numbers."""
        return self.stored.shape

    @property
    def dtype(self) -> DType:
        """The dtype that such weights are trained and used in, and have in an output by default."""
        return DType.BF16

    @property
    def file(self) -> Path:
        """The file of the narrow numbers."""
        return self.stored.file

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.stored.numel

    @property
    def nbytes(self) -> int:
        """Bytes in the files."""
        return self.stored.nbytes + self.scales.nbytes

    @property
    def itemsize(self) -> int:
        """Bytes that are read for an element, but for its share of a scale."""
        return self.stored.itemsize

    @property
    def verbatim(self) -> bool:
        """Tell whether the bytes are the elements in ``dtype``; they are not."""
        return False

    @property
    def leaves(self) -> tuple[StoredTensor, ...]:
        """The stored tensors behind it."""
        return self.stored, self.scales

    @property
    def constants(self) -> tuple[int, ...]:
        """Numbers that decide the elements beside the bytes of the leaves."""
        return self.tile

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows in all, over the leading dimensions, and columns."""
        columns = self.shape[-1] if self.shape else 1
        return (self.numel // columns if columns else 0), columns

    def scale_row(self, row: int) -> int:
        """Return the row of the scales, counted over the leading dimensions, that belongs to a row of the matrix."""
        rows = self.shape[-2] if len(self.shape) > 1 else 1
        height = self.tile[0]
        return row // rows * -(-rows // height) + row % rows // height

    def scale_span(self, start: int, count: int) -> tuple[int, int]:
        """Return the first scale, and how many in C order, that a run of elements needs."""
        if self.scales.numel == 1 or not count:
            return 0, min(1, count)
        columns = self.matrix[1]
        width = -(-columns // self.tile[1])
        first, last = self.scale_row(start // columns), self.scale_row((start + count - 1) // columns)
        return first * width, (last + 1 - first) * width

    def named(self, name: str) -> BlockScaled:
        """Return it under another name."""
        return replace(self, stored=self.stored.named(name))

    def byte_ranges(self, start: int, count: int) -> Iterator[ByteRange]:
        """Yield the bytes behind ``count`` elements from ``start``, those of the scales last."""
        yield from self.stored.byte_ranges(start, count)
        yield from self.scales.byte_ranges(*self.scale_span(start, count))


Source = StoredTensor | BlockScaled


def stored(extent: Extent) -> Source:
    """Return what a file holds as a tensor."""
    return StoredTensor(extent.name, extent.dtype, extent.shape, extent.file, extent.offset)


def part_of(source: Source, start: int, name: str, shape: tuple[int, ...]) -> Source:
    """Return a run of a stored tensor's elements, from ``start``, as a tensor of its own.

    Raises:
        TypeError: If the bytes are not the elements.
    """
    if not isinstance(source, StoredTensor):
        raise TypeError(f"'{source.name}' is not stored as its elements")
    return replace(source, name=name, shape=shape, offset=source.offset + start * source.itemsize)
