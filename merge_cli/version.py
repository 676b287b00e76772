"""The version of this package."""

from importlib.metadata import version

__version__ = version("merge-cli-nn")
# How the program calls itself in what it writes.
TOOL = f"merge-cli {__version__}"
