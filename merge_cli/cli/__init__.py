"""The command line: parse, call one function, print."""

from merge_cli.cli.app import main

__all__ = ["main"]
