"""Ordinary families under sensible recipes give no warning: those that are given would not be read."""

from pathlib import Path

import pytest

from merge_cli.cli.example_recipe import example_parameters
from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import Input
from merge_cli.plan import build_plan
from merge_cli.stream import with_sample_warnings
from tests.checkpoints import recipe_over
from tests.models import FAMILIES


def needs(name: str) -> frozenset[Input]:
    found = find_method(name)
    return found.needs(found.params.model_construct(), frozenset())


# Of every method of several models without Fishers: weight and density 0.5, as `merge-cli methods NAME` shows them.
RECIPES = {
    name: example_parameters(name)[0]
    for name in method_names()
    if find_method(name).models[1] is None and not needs(name) & {Input.FISHER, Input.CURVATURE}
}


@pytest.mark.parametrize(
    "family", ["llama-untied-sharded-float32", "llama-tied-bfloat16", "bert-float32", "vit-float32"]
)
def test_a_family_and_a_sensible_recipe_give_no_warning(family: str, tmp_path: Path) -> None:
    FAMILIES[family].save(tmp_path)
    for method, parameters in RECIPES.items():
        models = [{"model": name, "parameters": parameters} for name in ("ft1", "ft2")]
        base = {"base_model": "base"} if Input.BASE in needs(method) else {}
        plan = with_sample_warnings(
            build_plan(recipe_over(tmp_path, {"merge_method": method, "models": models, **base}))
        )
        assert (method, plan.warnings, plan.notes) == (method, (), ())
