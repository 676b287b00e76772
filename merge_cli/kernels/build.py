"""Commands of the installation: builds the compiled kernels, and says what a source distribution holds.

pyproject.toml names them; nothing imports this module afterwards. Python calls the kernels through cffi in its API
mode: a C module is made of ``compiled.h`` and compiled together with ``compiled.c``, which includes the same file, so
that a signature is written down once and the compiler checks both sides. It uses Python's stable ABI: one binary serves
every version.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

if TYPE_CHECKING:
    from setuptools import Extension

_HEADER = Path("merge_cli", "kernels", "compiled.h")
# What tests need besides the package.
_BESIDE = ("configs", "tests")


class BuildKernels(build_ext):
    """Writes the C module that Python imports, and compiles it with the kernels."""

    def build_extension(self, ext: Extension) -> None:
        """Build an extension; where that fails, an optional one is left out."""
        module = Path(self.build_temp, f"{ext.name}.c")
        module.parent.mkdir(parents=True, exist_ok=True)
        _write_module(ext.name, module)
        ext.sources = [*ext.sources, str(module)]
        ext.include_dirs = [*ext.include_dirs, str(_HEADER.parent)]
        super().build_extension(ext)


class SourceDistribution(sdist):
    """Adds the tests, and the recipes that they plan."""

    def make_distribution(self) -> None:
        """Pack what was found, and what is not found by itself."""
        self.filelist.append(str(_HEADER))
        for folder in _BESIDE:
            files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
            self.filelist.extend([str(path) for path in files if "__pycache__" not in path.parts])
        self.filelist.remove_duplicates()
        super().make_distribution()


def _write_module(name: str, path: Path) -> None:
    """Write the C source of the module that gives Python what the header declares."""
    try:
        from cffi import FFI
    except ImportError as error:
        raise CompileError(f"without cffi the kernels cannot be built: {error}") from error
    header = _HEADER.read_text(encoding="utf-8")
    maker = FFI()
    maker.cdef("\n".join(line for line in header.splitlines() if not line.startswith("#")))
    maker.set_source(name, f'#include "{_HEADER.name}"')
    maker.emit_c_code(str(path))
