"""One merge that the tests of the reports look at."""

from pathlib import Path

import pytest
import torch

from merge_cli import load_recipe
from merge_cli.plan import MergePlan, build_plan
from merge_cli.report import MergeReport
from merge_cli.run import merge
from tests.checkpoints import write_checkpoint

RECIPE = """# the author's words
merge_method: ties
base_model: base
models:
  - model: one
    parameters: {weight: [0.5, 1], density: 0.5}
  - model: two
    parameters: {weight: 1}
prepare:
  dare: {drop_rate: 0.5}
exclude: [head]
seed: 7
dtype: bfloat16
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the inputs, the recipe, and the output in ``out``."""
    root = tmp_path_factory.mktemp("merged")
    for i, name in enumerate(["base", "one", "two"]):
        tensors = {
            "layers.0.w": torch.full((4, 3), 1.0 + i),
            "layers.1.w": torch.full((4, 3), 2.0 - i),
            "head": torch.full((5,), 3.0 + i),
            "ids": torch.arange(3),
        }
        write_checkpoint(root / name, tensors)
        (root / name / "tokenizer.json").write_text(f'"{name}"')
    (root / "r.yml").write_text(RECIPE)
    return root


@pytest.fixture(scope="session")
def plan(folder: Path) -> MergePlan:
    """Return the plan."""
    return build_plan(load_recipe(folder / "r.yml", overrides=["parameters.lambda=0.5"]), shard_size=40)


@pytest.fixture(scope="session")
def report(plan: MergePlan, folder: Path) -> MergeReport:
    """Carry it out."""
    return merge(plan, folder / "out", sync=False)
