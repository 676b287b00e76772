"""A demonstration on a model small enough for two processor cores: trained, fine-tuned, measured, merged, compared.

It stands above everything but the command line: what it does to checkpoints, a user can do with the same recipes.
"""

from merge_cli.demo.report import DemoReport
from merge_cli.demo.run_demo import run_demo

__all__ = ["DemoReport", "run_demo"]
