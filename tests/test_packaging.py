"""What the package says of itself, and the versions that it names as tested."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.checkpoints import write_checkpoint

_ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_EXTRAS = _PROJECT["optional-dependencies"]
_NAMED = [*_PROJECT["dependencies"], *(each for extra in _EXTRAS.values() for each in extra)]


def pinned() -> dict[str, str]:
    lines = (_ROOT / "configs" / "tested.txt").read_text(encoding="utf-8").splitlines()
    parts = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in parts}


@pytest.mark.parametrize("text", [each for each in _NAMED if Requirement(each).name != _PROJECT["name"]])
def test_what_was_tested_is_what_the_package_asks_for(text: str) -> None:
    wanted = Requirement(text)
    version = pinned()[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version), f"{text} does not admit the tested {version}"
    assert [each.operator for each in wanted.specifier] == [">="], "a bound above needs a reason"


def test_the_distribution_has_not_the_name_of_another_one() -> None:
    assert _PROJECT["name"] == "merge-cli-nn"
    assert list(_PROJECT["scripts"]) == ["merge-cli"]


# --- what is built, by name only: it takes minutes and a network ------------------------------------------------------

_INTERPRETERS = ["python3.11", "python3.12", "python3.13"]
_RECIPE = """
merge_method: ties
base_model: base
models:
  - {model: one, parameters: {weight: 0.5, density: 0.4}}
  - {model: two, parameters: {weight: 0.3, density: 0.4}}
"""


def called(*command: str | Path, folder: Path | None = None, **variables: str) -> str:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fresh(folder: Path, interpreter: str) -> Path:
    called(interpreter, "-m", "venv", folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both distributions of a copy of the checkout, and write models to merge."""
    folder = tmp_path_factory.mktemp("built")
    called("git", "clone", "--quiet", _ROOT, folder / "checkout")
    tools = fresh(folder / "tools", sys.executable)
    called(tools / "pip", "install", "--quiet", "build")
    called(tools / "python", "-m", "build", "--outdir", folder / "dist", folder / "checkout")
    source = torch.Generator().manual_seed(0)
    for name in ("base", "one", "two"):
        tensors = {"w": torch.randn(300, 200, generator=source).to(torch.bfloat16)}
        write_checkpoint(folder / name, tensors | {"v": torch.randn(9, generator=source).to(torch.float8_e5m2)})
    (folder / "recipe.yml").write_text(_RECIPE)
    return folder


@pytest.mark.slow
def test_one_wheel_serves_every_python_and_the_sources_hold_the_tests(built: Path) -> None:
    wheel, source = next((built / "dist").glob("*.whl")), next((built / "dist").glob("*.tar.gz"))
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.startswith("_merge_cli_compiled.") for name in archive.namelist())
    with tarfile.open(source) as sources:
        held = {name.partition("/")[2] for name in sources.getnames()}
    assert {"configs/ties.yml", "tests/oracle.py", "merge_cli/kernels/compiled.h"} <= held


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False], ids=["wheel", "no compiler"])
@pytest.mark.parametrize("interpreter", _INTERPRETERS)
def test_what_is_built_installs_and_merges_in_a_fresh_environment(
    built: Path, tmp_path: Path, interpreter: str, *, compiler: bool
) -> None:
    if shutil.which(interpreter) is None or subprocess.run([interpreter, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"there is no {interpreter}")
    commands = fresh(tmp_path / "venv", interpreter)
    distribution = next((built / "dist").glob("*.whl" if compiler else "*.tar.gz"))
    called(commands / "pip", "install", "--quiet", distribution, **({} if compiler else {"CC": "/bin/false"}))
    said = called(commands / "merge-cli", "--version", "--verbose")
    assert f"compiled kernels {'in use' if compiler else 'not built'}" in said
    assert said.endswith("torch not installed\n")
    out = built / f"{interpreter} {compiler}"
    called(commands / "merge-cli", "merge", "recipe.yml", out, "--no-fsync", folder=built)
    outputs = [path.read_bytes() for path in built.glob("python3*/model.safetensors")]
    assert set(outputs) == {(out / "model.safetensors").read_bytes()}
