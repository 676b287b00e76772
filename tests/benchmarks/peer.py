"""mergekit in a virtual environment of its own, so that what it pins stays out of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.measuring import remove, run, say

# torch first and alone: its version decides which build, and how large a download, the rest then accepts.
# mergekit 0.1.4 does not work with transformers 5, although its metadata admits it.
PACKAGES = ("torch==2.13.0", "transformers<5", "mergekit==0.1.4")

_VERSIONS = """
import json, platform
from importlib.metadata import version
names = ("mergekit", "torch", "transformers", "safetensors", "numpy")
print(json.dumps({"python": platform.python_version()} | {name: version(name) for name in names}))
"""


def install(folder: Path, packages: Sequence[str]) -> Path:
    """Return the path of ``mergekit-yaml`` in the virtual environment ``folder``, which is made where it is missing.

    Args:
        folder: Where.
        packages: What to install; the first of them in a step of its own.

    Raises:
        SystemExit: If pip fails.
    """
    program = folder / "bin" / "mergekit-yaml"
    if program.exists():
        return program
    say(f"installing {', '.join(packages)} into {folder}")
    remove(folder)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    run([*pip, packages[0]])
    run([*pip, *packages])
    return program


def versions(program: Path) -> dict[str, str]:
    """Return the versions in the environment of ``mergekit-yaml``."""
    found: dict[str, str] = json.loads(run([program.with_name("python"), "-c", _VERSIONS]).output)
    return found
