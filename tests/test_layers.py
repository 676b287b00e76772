"""The import ranks of the design, and that asking for help is quick."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import merge_cli
from merge_cli.checkpoint.sources import Source

_ROOT = Path(merge_cli.__file__).parent
_RANKS = (
    {"errors", "text", "version", "process"}, {"optional", "storage"}, {"kernels", "checkpoint", "tokenizer"},
    {"methods"}, {"recipe"}, {"plan"}, {"stream"}, {"fisher", "evaluate", "report", "distributed"}, {"output"}, {"run"},
    {"mismatch", "verification", "study"}, {"demo"}, {"cli"}, {"testing"},
)  # fmt: skip
_RANK = {part: rank for rank, parts in enumerate(_RANKS) for part in parts}
# What the batteries for third parties may use; nothing but tests imports them, so they have the highest rank.
_TESTED = {"methods", "plan", "stream"}


def _imports(path: Path) -> Iterator[str]:
    """Yield the parts of the package that a module names in its imports, wherever they stand; '' for the root."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "merge_cli":
                yield from (alias.name if alias.name in _RANK else "" for alias in node.names)
            elif (node.module or "").startswith("merge_cli."):
                yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2].split(".")[0] for alias in node.names if _ours(alias.name))


def _ours(name: str) -> bool:
    return name == "merge_cli" or name.startswith("merge_cli.")


def test_a_module_imports_only_from_parts_of_a_lower_rank() -> None:
    found = 0
    for path in sorted(_ROOT.rglob("*.py")):
        part = path.relative_to(_ROOT).parts[0].removesuffix(".py")
        if part.startswith("__"):
            continue
        assert part in _RANK, f"{path} has no rank yet"
        for imported in set(_imports(path)) - {part}:
            found += 1
            assert imported, f"{path} imports the root of the package"
            assert _RANK[imported] < _RANK[part], f"{path} imports {imported}"
            if part == "testing":
                assert _RANK[imported] <= max(_RANK[each] for each in _TESTED), f"{path} imports {imported}"
    assert found > 50


def test_only_what_makes_and_what_decodes_sources_names_a_kind_of_them() -> None:
    kinds = {kind.__name__ for kind in get_args(Source)}
    naming = set()
    for path in sorted(_ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        words |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        if words & kinds:
            naming.add(path.relative_to(_ROOT).as_posix())
    assert naming == {"checkpoint/sources.py", "checkpoint/views.py", "stream/decode.py"}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    program = f"""
import sys
sys.argv = ["merge-cli", {option!r}]
from merge_cli.cli import main
try:
    main()
except SystemExit as exit:
    assert exit.code == 0, exit.code
heavy = {{"torch", "transformers", "numpy", "pydantic", "safetensors", "huggingface_hub", "yaml", "ray"}}
print("\\nloaded:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith("loaded: []\n")
    assert "merge" in done.stdout.lower()
