"""The text of a recipe, wherever it is."""

from __future__ import annotations

from pathlib import Path

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.turning import reading
from merge_cli.errors import CheckpointError, RecipeError

_MOST_BYTES = 1_000_000
# Where a shell puts what comes through a pipe; it is there to be read, and may be waited for.
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def read_text(path: Path) -> str:
    """Return the text of a file, or of a stream that the shell provides, of up to 1 MB.

    Raises:
        RecipeError: If it cannot be read, or is no such text.
    """
    try:
        return _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text", hint="is it the right file?") from error


def _read(path: Path) -> bytes:
    try:
        if not str(path).startswith(_STREAMS):
            return Files().read_whole(path, most=_MOST_BYTES)
        with reading(path), path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except CheckpointError as error:
        what = error.message.replace("cannot read", "cannot read the recipe", 1)
        raise RecipeError(what, hint=error.hint) from error
    if len(raw) > _MOST_BYTES:
        raise RecipeError(f"{path} has more than {_MOST_BYTES} bytes", hint="is it the right file?")
    return raw
