"""A method in a package of its own: installed beside merge-cli it is found, merges, and passes its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

import merge_cli.testing
from merge_cli.methods import find_method
from tests.checkpoints import read_checkpoint, write_checkpoint

EXAMPLE = Path(__file__).parent / "example"
RECIPE = "merge_method: median_of_three\nmodels: [./one, ./two, ./three]\n"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package's wheel and unpack it, which is all that installing it comes to; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("merge_median-1.0-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *words: str) -> str:
    """Run Python with the package installed, and return what it prints."""
    checkout = Path(merge_cli.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (site, checkout)))}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_shown_among_the_methods_and_described(site: Path, tmp_path: Path) -> None:
    lines = run(site, tmp_path, "-m", "merge_cli", "methods").splitlines()
    assert ["median_of_three", "take", "the", "median"] in [line.split()[:4] for line in lines]
    printed = run(site, tmp_path, "-m", "merge_cli", "methods", "median_of_three")
    assert printed.startswith("median_of_three: take the median of three models\n\n  merged = median(θ₁, θ₂, θ₃)\n")


def test_a_recipe_merges_with_it(site: Path, tmp_path: Path) -> None:
    for name, numbers in {"one": [1.0, 5.0, -2.0], "two": [3.0, 4.0, -2.0], "three": [2.0, 9.0, 7.0]}.items():
        write_checkpoint(tmp_path / name, {"w": torch.tensor(numbers)})
    (tmp_path / "recipe.yml").write_text(RECIPE)
    run(site, tmp_path, "-m", "merge_cli", "merge", "recipe.yml", "out")
    assert read_checkpoint(tmp_path / "out")["w"].tolist() == [2.0, 5.0, -2.0]


def test_its_own_tests_run_the_battery_and_pass(site: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "test_merge_median.py", tmp_path)
    printed = run(site, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_merge_median.py")
    rules = merge_cli.testing.method_checks(find_method("linear"), oracle=lambda tensors, params: {})
    assert f"{len(rules)} passed" in printed


@pytest.mark.parametrize("name", ["merge_median.py", "test_merge_median.py", "pyproject.toml"])
def test_the_documentation_of_the_battery_shows_the_package_as_it_is(name: str) -> None:
    text = (EXAMPLE / name).read_text(encoding="utf-8")
    if name == "pyproject.toml":
        text = text[text.index("[project.entry-points") : text.index("[tool.setuptools]")]
    assert textwrap.indent(text.strip(), "    ") in str(merge_cli.testing.__doc__)
