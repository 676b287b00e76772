"""The base installation: merging without torch, and errors that say which extra brings what is missing."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merge_cli import RecipeError
from merge_cli.cli.example_recipe import example_parameters
from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import Input
from merge_cli.optional import LazyModule, import_optional, is_installed, missing_library
from merge_cli.plan import build_plan
from merge_cli.recipe import load_recipe
from merge_cli.run import merge
from tests.checkpoints import write_checkpoint

PROGRAM = """
import sys
for library in {missing!r}:
    sys.modules[library] = None
{program}
"""
COMMAND = """
from merge_cli.cli import main
sys.argv = ["merge-cli", *{arguments!r}]
main()
"""


def python(folder: Path, program: str, *, missing: tuple[str, ...] = ("torch",)) -> subprocess.CompletedProcess[str]:
    text = PROGRAM.format(missing=missing, program=program)
    return subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, timeout=120)


def command(folder: Path, *arguments: str, missing: tuple[str, ...] = ("torch",)) -> subprocess.CompletedProcess[str]:
    return python(folder, COMMAND.format(arguments=arguments), missing=missing)


METHODS = [name for name in method_names() if find_method(name).numpy]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    source = torch.Generator().manual_seed(3)
    for name in ("base", "one", "two"):
        tensors = {"w": torch.randn(60, 50, generator=source).to(torch.bfloat16), "v": torch.randn(7, generator=source)}
        tensors["f"] = torch.randn(9, generator=source).to(torch.float8_e4m3fn)
        write_checkpoint(tmp_path / name, tensors)
    return tmp_path


def write_recipe(folder: Path, method: str, **more: Any) -> None:
    found, (each, shared) = find_method(method), example_parameters(method)
    given = [{"model": name, "parameters": {**each}} for name in ("one", "two")[: found.models[1]]]
    if "weight" in each:
        for model, weight in zip(given, (0.5, 0.3), strict=True):
            model["parameters"]["weight"] = weight
    recipe: dict[str, Any] = {"merge_method": method, "parameters": shared, "models": given, **more}
    if Input.BASE in found.needs(found.params.model_construct(), frozenset()):
        recipe["base_model"] = "base"
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_without_torch_gives_the_bytes_of_torch(
    models: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(models, method)
    done = command(models, "merge", "recipe.yml", "without", "--quiet", "--no-fsync")
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setattr("merge_cli.stream.workers.numpy_suffices", lambda plan: False)
    merge(build_plan(load_recipe(models / "recipe.yml"), device="cpu"), models / "by-torch", sync=False)
    file = "model.safetensors"
    assert (models / "without" / file).read_bytes() == (models / "by-torch" / file).read_bytes()


def test_commands_that_merge_nothing_need_no_torch(models: Path) -> None:
    write_recipe(models, "ties")
    for arguments in (["methods"], ["methods", "fisher"], ["plan", "recipe.yml"], ["doctor"], ["inspect", "base"]):
        done = command(models, *arguments)
        assert done.returncode == 0, done.stderr
    assert "gradient_matching" in command(models, "methods").stdout
    said = command(models, "--version", "--verbose").stdout
    assert "compiled kernels" in said
    assert "torch not installed" in said or find_spec("torch") is not None


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["merge", "recipe.yml", "out", "--device", "cpu"], "merge_method: fisher"),
        (["merge", "recipe.yml", "out", "--device", "cuda"], "--device cuda"),
        (["demo", "demo"], "running models"),
        (["fisher", "one", "--data", "x.jsonl", "--out", "f"], "running models"),
    ],
)
def test_what_needs_torch_says_how_to_install_it(models: Path, arguments: list[str], what: str) -> None:
    for name in ("one", "two"):
        tensors = {"w": torch.ones(60, 50), "v": torch.ones(7), "f": torch.ones(9)}
        write_checkpoint(models / f"{name}-fisher", tensors)
    write_recipe(models, "fisher")
    recipe = yaml.safe_load((models / "recipe.yml").read_text())
    for model in recipe["models"]:
        model["fisher"] = f"{model['model']}-fisher"
    (models / "recipe.yml").write_text(yaml.safe_dump(recipe))
    done = command(models, *arguments)
    assert done.returncode == 2, done.stderr
    extra = "fisher" if what == "running models" else "torch"
    assert f"{what} needs the torch library\n  hint: pip install 'merge-cli-nn[{extra}]'\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (models / "out").exists()
    assert not (models / "out.partial").exists()


def test_names_of_the_package_say_it_too(tmp_path: Path) -> None:
    program = """
from merge_cli import RecipeError
try:
    from merge_cli import estimate_fisher
except RecipeError as error:
    print(error.message, error.hint)
"""
    done = python(tmp_path, program)
    assert done.stdout == "running models needs the torch library pip install 'merge-cli-nn[fisher]'\n"


# --- the function that asks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "extra"),
    [("torch", "torch"), ("transformers", "fisher"), ("datasets", "fisher"), ("PIL.Image", "fisher")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RecipeError) as caught:
        import_optional(library, "a test")
    assert caught.value.message == f"a test needs the {library} library"
    assert caught.value.hint == f"pip install 'merge-cli-nn[{extra}]'"
    with pytest.raises(RecipeError):
        _ = LazyModule(library, "a test").something


def test_a_library_that_is_there_is_imported_where_it_is_used() -> None:
    assert import_optional("math", "a test").pi == LazyModule("math", "a test").pi
    assert is_installed("math")
    assert not is_installed("no_such_library")


def test_an_import_that_fails_for_other_reasons_is_not_an_extra_that_is_missing() -> None:
    assert missing_library(ModuleNotFoundError("x", name="merge_cli.nothing")) is None
    assert missing_library(ImportError("undefined symbol", name="torch")) is None
    found = missing_library(ModuleNotFoundError("x", name="torch.nn"))
    assert found is not None
    assert found.hint == "pip install 'merge-cli-nn[fisher]'"
