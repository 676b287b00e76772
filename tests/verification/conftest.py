"""Gives the tests the program as a script sees it, and something that it can merge."""

from tests.cli.conftest import folder, run

__all__ = ["folder", "run"]
