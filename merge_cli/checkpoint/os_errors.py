"""Translation of OSError into errors that name the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from merge_cli.errors import CheckpointError, MergeError, ResourceError, of_system


class _Translation:
    """Translates an OSError of its block, at a third of the cost of a contextlib context manager."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise self.translated(error) from error

    def translated(self, error: OSError) -> MergeError:
        """Return what is raised instead."""
        raise NotImplementedError


class read_errors(_Translation):
    """Turn an OSError of the block into a CheckpointError that names the file."""

    __slots__ = ()

    def translated(self, error: OSError) -> MergeError:
        """Return what is raised instead."""
        return CheckpointError(f"cannot read {self._path}: {error.strerror or error}")


@contextlib.contextmanager
def output_read_errors() -> Iterator[None]:
    """Turn a CheckpointError of the block into a ResourceError: what cannot be read is not an input but the output."""
    try:
        yield
    except CheckpointError as error:
        raise ResourceError(error.message) from error.__cause__


class write_errors(_Translation):
    """Turn an OSError of the block into a ResourceError, or one of its kinds, that names the file."""

    __slots__ = ()

    def translated(self, error: OSError) -> MergeError:
        """Return what is raised instead."""
        return of_system(error, self._path)
