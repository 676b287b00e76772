"""Running variances, which no sum of task vectors may take below zero."""

from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli.plan import build_plan
from merge_cli.run import merge
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint

BASE = [1.0, 1.0, 1.0, 4.0]
ONE = [0.25, 2.0, 0.5, 1.0]
TWO = [0.5, 3.0, 1.0, 1.0]


def result(folder: Path, name: str, *, dtype: torch.dtype = torch.float32, **recipe: Any) -> list[float]:
    for model, values in (("base", BASE), ("one", ONE), ("two", TWO)):
        write_checkpoint(folder / model, {name: torch.tensor(values, dtype=dtype), "w": [[1.0]]})
    models = [{"model": model, "parameters": {"weight": 1.0}} for model in ("one", "two")]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": models, **recipe}
    plan = build_plan(recipe_over(folder, content))
    merge(plan, folder / "out", sync=False)
    return read_checkpoint(folder / "out")[name].tolist()


# Base and both task vectors: 1 - 0.75 - 0.5, 1 + 1 + 2, 1 - 0.5 + 0, 4 - 3 - 3.
SUM = [-0.25, 4.0, 0.5, -2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_variance_stays_above_the_smallest_of_its_inputs(dtype: torch.dtype, tmp_path: Path) -> None:
    found = result(tmp_path, "bn1.running_var", dtype=dtype)
    assert found == [0.25, 4.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["bn1.running_mean", "bn1.weight", "not_running_var"])
def test_other_tensors_are_what_the_method_makes_of_them(name: str, tmp_path: Path) -> None:
    assert result(tmp_path, name) == SUM


def test_an_average_of_variances_is_not_touched(tmp_path: Path) -> None:
    assert result(tmp_path, "running_var", merge_method="linear") == [0.375, 2.5, 0.75, 1.0]


def test_a_plan_says_that_statistics_were_not_measured(tmp_path: Path) -> None:
    result(tmp_path, "bn1.running_var")
    models = [{"model": "one", "parameters": {"weight": 1.0}}]
    plan = build_plan(
        recipe_over(tmp_path, {"merge_method": "task_arithmetic", "base_model": "base", "models": models})
    )
    (note,) = plan.notes
    assert note.startswith("running statistics (1 batch normalisation) are merged like weights")
    assert plan.warnings == ()
