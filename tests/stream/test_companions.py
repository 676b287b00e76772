"""A new kind of file beside a model is one row: named in the recipe, checked, read, and given to a method."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints import read_checkpoint, write_checkpoint

SCRIPT = """
import sys
from pathlib import Path
from typing import Any

import numpy as np

from merge_cli.methods.contract import companions
from merge_cli.methods.contract import Block, Method, Input, Params, Scope

row = companions.Companion(
    kind="gram", title="Gram matrix", description="checkpoint that holds the inner products of this model's inputs",
    rows="gram", accepted=("gram",), reduction="sum", shape=lambda shape: (shape[-1], shape[-1]), whole=True,
)
companions.COMPANIONS = (*companions.COMPANIONS, row)
import merge_cli.methods.contract as contract
contract.COMPANIONS = companions.COMPANIONS

import merge_cli.methods as methods


class Nothing(Params):
    pass


def regression_mean(block: Block, _: Params) -> Any:
    \"\"\"Return sum_i W_i G_i (sum_j G_j)^-1, row by row.\"\"\"
    grams = np.asarray(block.companion("gram")).astype(np.float64)
    rows = np.asarray(block.models).reshape(block.n, -1, block.shape[-1])
    found = sum(row @ gram for row, gram in zip(rows, grams)) @ np.linalg.inv(grams.sum(axis=0))
    return found.astype(np.float32)


METHOD = Method(
    merge=regression_mean, params=Nothing, needs=lambda params, given: frozenset({Input.MODELS, "gram"}),
    summary="for a test", equation="none", source="a test", scope=lambda params, shape: Scope.ROW, numpy=True,
)
found_before = methods.find_method
methods.find_method = lambda name: METHOD
from merge_cli.plan import build_plan, model, build
from merge_cli.recipe import load_recipe
from merge_cli.run import merge
from merge_cli.errors import MergeError
model.find_method = build.find_method = lambda name: METHOD
try:
    plan = build_plan(load_recipe(Path(sys.argv[1])), memory=2**21, threads=1)
    print([f"{each.role}: {each.label}" for each in plan.inputs])
    merge(plan, Path(sys.argv[2]), sync=False)
except MergeError as error:
    print(error)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, gram in enumerate([torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])]):
        write_checkpoint(tmp_path / f"m{i}", {"w": torch.full((3, 2), float(4 * i))})
        write_checkpoint(tmp_path / f"g{i}", {"w": gram}, config=None, metadata={"kind": "gram", "reduction": "sum"})
    models = "".join(f"- {{model: m{i}, gram: g{i}}}\n" for i in range(2))
    (tmp_path / "recipe.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def ran(folder: Path) -> str:
    command = [sys.executable, folder / "script.py", folder / "recipe.yml", folder / "out"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_companion_in_a_row_of_its_own_is_opened_checked_and_read_whole(folder: Path) -> None:
    assert "'gram 0: g0', 'gram 1: g1'" in ran(folder)
    # Columns apart: (0 · 2 + 4 · 2) / 4 = 2 and (0 · 1 + 4 · 3) / 4 = 3.
    assert read_checkpoint(folder / "out")["w"].tolist() == [[2.0, 3.0]] * 3


def test_a_companion_of_another_shape_or_kind_is_refused(folder: Path) -> None:
    write_checkpoint(folder / "g1", {"w": torch.ones(3, 2)}, config=None)
    assert "w is [3, 2] of float32, expected [2, 2] of float32" in ran(folder)
    write_checkpoint(folder / "g1", {"w": torch.ones(2, 2)}, config=None, metadata={"kind": "fisher"})
    assert "says of itself that it is a fisher; the recipe names it as a gram" in ran(folder)
