"""Listeners to the progress of a merge."""

from typing import Protocol


class Listener(Protocol):
    """Is told how the work goes."""

    def phase(self, name: str, nbytes: int) -> None:
        """Begin a phase of the work in which ``nbytes`` are to be done."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """Count bytes that were done, the last of them of this tensor."""


class NullListener:
    """Listens to nothing."""

    def phase(self, name: str, nbytes: int) -> None:
        """Do nothing."""

    def advance(self, tensor: str, nbytes: int) -> None:
        """Do nothing."""
