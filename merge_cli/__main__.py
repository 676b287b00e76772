"""``python -m merge_cli`` is ``merge-cli``."""

from merge_cli.cli import program

program()
