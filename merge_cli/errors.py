"""The tree of errors; its leaves differ in the exit code that a script sees.

MergeError
├── RecipeError         2   the recipe or the command line is wrong
├── CheckpointError     3   an input cannot be used
├── ResourceError       4   not enough disk or memory
│   ├── WriteError      6   an output cannot be written where it was asked for
│   └── BusyError      75   another process is at work there; try again
├── VerificationError   5   an output is not what it claims to be
└── Interrupted       130   stopped by the user
"""

import errno


class MergeError(Exception):
    """An error that the user can fix: says where, what was expected, what arrived, and what to try.

    Args:
        message: One sentence; it starts with the place (``recipe.yml:5: ...``) where there is one.
        hint: What to try, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class RecipeError(MergeError):
    """The recipe or the command line is wrong."""

    exit_code = 2


class CheckpointError(MergeError):
    """An input is missing, damaged, or does not fit the others."""

    exit_code = 3


class ResourceError(MergeError):
    """There is not enough disk space or memory."""

    exit_code = 4


class WriteError(ResourceError):
    """The system does not let an output be written where it was asked for."""

    exit_code = 6


class BusyError(ResourceError):
    """Another process is at work on the same output; the code is that of a temporary failure in sysexits.h."""

    exit_code = 75


class VerificationError(MergeError):
    """An output is not what it claims to be."""

    exit_code = 5


class Interrupted(MergeError):
    """The user stopped the work."""

    exit_code = 130


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What the machine lacks or has lost; of anything else the place is at fault, or who may write there.
_LACKING = _FULL | {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EIO, errno.ENOLCK}


def of_system(error: OSError, path: object = None) -> ResourceError:
    """Return what is raised where the system does not let an output be written, or work be done at all.

    Args:
        error: What the system says.
        path: What was to be written; default: the file that the error names.
    """
    place = path if path is not None else error.filename
    what = f"cannot write {place}" if path is not None else f"the system refuses{f' {place}' if place else ''}"
    message = f"{what}: {error.strerror or error}"
    if error.errno in _FULL:
        return ResourceError(message, hint="free some disk space or write elsewhere")
    if error.errno in _LACKING:
        return ResourceError(message)
    return WriteError(message, hint="choose another place for the output, or see who may write there")
