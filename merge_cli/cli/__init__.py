"""The command line: parse, call one function, print."""

from merge_cli.cli.app import main, program

__all__ = ["main", "program"]
