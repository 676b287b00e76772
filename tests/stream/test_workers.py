"""Which worker does what, and that one of them needs no torch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merge_cli.cli.example_recipe import example_parameters
from merge_cli.errors import CheckpointError, VerificationError
from merge_cli.kernels import backend
from merge_cli.kernels.compiled import LIBRARY
from merge_cli.kernels.numpy_backend import NumpyBackend
from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import Block, Params
from merge_cli.plan import MergePlan
from merge_cli.run import merge
from merge_cli.stream.workers import numpy_suffices
from tests.checkpoints import read_checkpoint, write_checkpoint
from tests.stream.families import every_method, planned, recipe_for

TASK_ARITHMETIC: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": "base"}
ONE = [{"model": "one", "parameters": {"weight": 0.5}}]


def write_pair(folder: Path, **dtypes: torch.dtype) -> None:
    """Write a base and a model of one tensor for each dtype, all of whose numbers every dtype can hold."""
    for number, name in enumerate(["base", "one"]):
        numbers = torch.arange(6.0).view(2, 3) * (1 + number)
        write_checkpoint(folder / name, {tensor: numbers.to(dtype) for tensor, dtype in dtypes.items()})


def task_arithmetic(folder: Path, **more: Any) -> MergePlan:
    return planned(folder, {**TASK_ARITHMETIC, "models": ONE, **more}, device="cpu")


@pytest.mark.parametrize(("name", "params"), every_method())
def test_methods_of_operators_and_kernels_need_no_torch(family: Path, name: str, params: Params) -> None:
    assert numpy_suffices(planned(family, recipe_for(name, params))) == (name not in ("fisher", "gradient_matching"))


FLOATS = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_dtype_needs_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    write_pair(tmp_path, w=torch.bfloat16, v=dtype)
    assert numpy_suffices(task_arithmetic(tmp_path))
    assert numpy_suffices(task_arithmetic(tmp_path, exclude=["v"]))
    write_pair(tmp_path, w=torch.bfloat16, ids=torch.int64, flags=torch.bool, bytes=torch.uint8)
    assert numpy_suffices(task_arithmetic(tmp_path, out_dtype=str(dtype).removeprefix("torch.")))


def test_neither_do_merges_without_compiled_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, w=torch.bfloat16)
    monkeypatch.setattr(backend, "CPU", NumpyBackend())
    assert numpy_suffices(task_arithmetic(tmp_path))


def test_a_method_that_does_not_say_it_takes_numpy_s_arrays_is_left_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path, w=torch.bfloat16)
    seen = []

    def halved(block: Block, params: Any) -> Any:
        seen.append(type(block.deltas))
        return block.base + 0.5 * block.deltas[0].clamp(min=0)

    method = replace(find_method("task_arithmetic"), merge=halved, numpy=False)
    monkeypatch.setattr("merge_cli.plan.model.find_method", lambda name: method)
    merge(replace(task_arithmetic(tmp_path)), tmp_path / "out", sync=False)
    assert seen == [torch.Tensor]
    assert read_checkpoint(tmp_path / "out")["w"].tolist() == [[0.0, 1.5, 3.0], [4.5, 6.0, 7.5]]


# --- the same behaviour -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["compiled", "numpy", "torch"])
def _worker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled" and LIBRARY is None:
        pytest.skip("the kernels were not compiled")
    if request.param == "numpy":
        monkeypatch.setattr(backend, "CPU", NumpyBackend())
    if request.param == "torch":
        monkeypatch.setattr("merge_cli.stream.workers.numpy_suffices", lambda plan: False)


@pytest.mark.usefixtures("_worker")
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", [str(dtype).removeprefix("torch.") for dtype in FLOATS])
def test_an_excluded_tensor_is_cast(tmp_path: Path, source: torch.dtype, target: str) -> None:
    write_pair(tmp_path, w=torch.bfloat16, head=source)
    merge(task_arithmetic(tmp_path, exclude=["head"], out_dtype=target), tmp_path / "out", sync=False)
    found = read_checkpoint(tmp_path / "out")
    wanted = getattr(torch, target)
    assert found["head"].dtype is wanted
    assert found["head"].tolist() == torch.arange(6.0).view(2, 3).tolist()
    # float8_e5m2 rounds 4.5 and 7.5.
    assert found["w"].tolist() == torch.tensor([[0.0, 1.5, 3.0], [4.5, 6.0, 7.5]]).to(wanted).tolist()
    assert found["w"].dtype is wanted


def spoiled(folder: Path, name: str, tensor: str, value: float, dtype: torch.dtype) -> None:
    write_pair(folder, w=dtype, head=dtype)
    tensors = read_checkpoint(folder / name)
    tensors[tensor][1, 1] = value
    write_checkpoint(folder / name, tensors)


@pytest.mark.usefixtures("_worker")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("where", "tensor"), [("base", "w"), ("one", "w"), ("base", "head")])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_is_refused_and_named(
    tmp_path: Path, dtype: torch.dtype, where: str, tensor: str, value: float
) -> None:
    # float8_e4m3fn has no infinity.
    spoiled(tmp_path, where, tensor, math.nan if dtype is torch.float8_e4m3fn else value, dtype)
    with pytest.raises(CheckpointError, match=f"'{tensor}' in .*{where}.* holds NaN or infinity"):
        merge(task_arithmetic(tmp_path, exclude=["head"]), tmp_path / "out", sync=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_worker")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_copy_of_what_is_not_finite_can_be_allowed(tmp_path: Path, dtype: torch.dtype) -> None:
    spoiled(tmp_path, "base", "head", float("inf"), dtype)
    plan = replace(task_arithmetic(tmp_path, exclude=["head"]), allow_nonfinite=True)
    merge(plan, tmp_path / "out", sync=False)
    assert read_checkpoint(tmp_path / "out")["head"][1, 1] == float("inf")


@pytest.mark.usefixtures("_worker")
@pytest.mark.parametrize("exclude", [[], ["w"]])
def test_a_number_too_large_for_the_output_is_refused(tmp_path: Path, exclude: list[str]) -> None:
    for name in ("base", "one"):
        write_checkpoint(tmp_path / name, {"w": torch.tensor([1.0, 70_000.0]), "v": torch.ones(1)})
    with pytest.raises(VerificationError, match="'w' of the output holds NaN or infinity"):
        merge(task_arithmetic(tmp_path, out_dtype="float16", exclude=exclude), tmp_path / "out", sync=False)


@pytest.mark.usefixtures("_worker")
def test_a_copy_is_judged_by_its_own_dtype(tmp_path: Path) -> None:
    # 1e300 is beyond float32.
    for name in ("base", "one"):
        write_checkpoint(tmp_path / name, {"w": torch.ones(2), "v": torch.tensor([1e300, 1.0], dtype=torch.float64)})
    merge(task_arithmetic(tmp_path, exclude=["v"], dtype="float64"), tmp_path / "out", sync=False)
    assert read_checkpoint(tmp_path / "out")["v"].tolist() == [1e300, 1.0]
    with pytest.raises(VerificationError, match="'v' of the output holds NaN or infinity"):
        merge(task_arithmetic(tmp_path, exclude=["v"], dtype="bfloat16"), tmp_path / "narrow", sync=False)


@pytest.mark.usefixtures("_worker")
def test_beyond_the_largest_float8_nothing_is_cut_off(tmp_path: Path) -> None:
    # 448 is the largest; up to 464 numbers round to it.
    for largest in (464.0, 464.5):
        for name in ("base", "one"):
            write_checkpoint(tmp_path / name, {"w": torch.tensor([1.0, largest])})
        plan = task_arithmetic(tmp_path, out_dtype="float8_e4m3fn")
        if largest == 464.0:
            merge(plan, tmp_path / "out", sync=False)
            assert read_checkpoint(tmp_path / "out")["w"].tolist() == [1.0, 448.0]
        else:
            with pytest.raises(VerificationError, match="'w' of the output holds NaN or infinity"):
                merge(plan, tmp_path / "other", sync=False)


# --- torch is not imported --------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from merge_cli.cli import main
sys.argv = ["merge-cli", *{arguments!r}]
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("compiled", ["1", "0"])
@pytest.mark.parametrize("method", [name for name in method_names() if find_method(name).numpy])
def test_neither_planning_nor_merging_imports_torch(tmp_path: Path, method: str, compiled: str) -> None:
    write_pair(tmp_path, **{f"w{number}": dtype for number, dtype in enumerate(FLOATS)})
    each, shared = example_parameters(method)
    models = [{"model": str(tmp_path / "one"), "parameters": each}]
    recipe: dict[str, Any] = {"merge_method": method, "models": models, "parameters": shared}
    recipe["base_model"] = str(tmp_path / "base")
    if method == "dare_linear":
        recipe["prepare"] = {"keep_largest": {"density": 0.9}}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    environment = {**os.environ, "MERGE_CLI_COMPILED": compiled}
    # One thread: in this process, not in one that is forked from it.
    here = ["--quiet", "--device", "cpu", "--threads", "1"]
    for arguments in (["plan", "recipe.yml"], ["merge", "recipe.yml", "out", *here]):
        program = PROGRAM.format(arguments=arguments)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("False\n")
    assert (tmp_path / "out" / "model.safetensors").exists()
