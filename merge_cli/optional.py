"""Libraries that the base installation does without, and the extra that brings each."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from merge_cli.errors import RecipeError

# Library -> the extra of pyproject.toml.
_EXTRAS = {"torch": "torch", "transformers": "fisher", "datasets": "fisher", "PIL": "fisher", "jinja2": "fisher"}


def import_optional(library: str, what: str) -> Any:
    """Import an optional library.

    Args:
        library: Its name.
        what: What it is needed for, for the message.

    Raises:
        RecipeError: If it is not installed, or lacks something of its own; says which extra brings it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        if not _is_missing(library, error):
            raise
        lacking = f" (it lacks {error.name})" if error.name not in {None, library} else ""
        raise RecipeError(f"{what} needs the {library} library{lacking}", hint=_command(library)) from error


def is_installed(library: str) -> bool:
    """Tell whether a library is there, without importing it."""
    return find_spec(library) is not None


class LazyModule:
    """Stands for an optional library at the top of a module, and imports it where something of it is used.

    Attributes:
        library: Its name.
        what: What it is needed for.
    """

    def __init__(self, library: str, what: str) -> None:
        self.library = library
        self.what = what

    def __getattr__(self, name: str) -> Any:
        """Return something of the library."""
        return getattr(import_optional(self.library, self.what), name)


def missing_library(error: ImportError) -> RecipeError | None:
    """Return what to tell a user about an import that failed, if an extra brings what is missing.

    Packages that run models import their libraries at the top; whoever imports such a package asks this. It names the
    extra that brings all of them.
    """
    library = (error.name or "").partition(".")[0]
    if library not in _EXTRAS or not isinstance(error, ModuleNotFoundError):
        return None
    return RecipeError(f"running models needs the {library} library", hint=_command("transformers"))


def _is_missing(library: str, error: ImportError) -> bool:
    """Tell whether it is not there, or lacks another; what is there and does not load has other reasons."""
    return isinstance(error, ModuleNotFoundError) or error.name in {None, library}


def _command(library: str) -> str:
    return f"pip install 'merge-cli-nn[{_EXTRAS[library.partition('.')[0]]}]'"
