"""Entry point of ``python -m merge_cli``."""

from merge_cli.cli import program

program()
