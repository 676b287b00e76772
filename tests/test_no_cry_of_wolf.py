"""Ordinary families under sensible recipes give no warning: those that are given would not be read."""

from pathlib import Path

import pytest

from merge_cli.plan import build_plan
from merge_cli.stream import with_sample_warnings
from tests.checkpoints import recipe_over
from tests.models import FAMILIES

RECIPES = {
    "linear": {"weight": 0.5},
    "task_arithmetic": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.5},
    "dare_ties": {"weight": 0.5, "density": 0.5},
    "dare_linear": {"weight": 0.5, "density": 0.5},
}


@pytest.mark.parametrize(
    "family", ["llama-untied-sharded-float32", "llama-tied-bfloat16", "bert-float32", "vit-float32"]
)
def test_a_family_and_a_sensible_recipe_give_no_warning(family: str, tmp_path: Path) -> None:
    FAMILIES[family].save(tmp_path)
    for method, parameters in RECIPES.items():
        models = [{"model": name, "parameters": parameters} for name in ("ft1", "ft2")]
        base = {} if method == "linear" else {"base_model": "base"}
        plan = with_sample_warnings(
            build_plan(recipe_over(tmp_path, {"merge_method": method, "models": models, **base}))
        )
        assert (method, plan.warnings, plan.notes) == (method, (), ())
