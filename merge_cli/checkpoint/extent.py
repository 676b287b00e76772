"""An extent: where the elements of one tensor lie in a file, of an input or of the output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from merge_cli.checkpoint.dtypes import DType


@dataclass(frozen=True, slots=True)
class Extent:
    """Place of a tensor: ``numel`` elements of ``dtype`` in C order, ``offset`` bytes into ``file``."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize
