"""What the plan warns of without a look at the numbers: models named twice, unusual weights."""

from pathlib import Path
from typing import Any

import pytest

from merge_cli.plan import build_plan
from tests.checkpoints import recipe_over, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with three checkpoints of three layers."""
    for i, name in enumerate(["base", "one", "two"]):
        write_checkpoint(tmp_path / name, {f"layers.{layer}.w": [1.0 + i, layer] for layer in range(3)})
    return tmp_path


def entry(name: str, weight: Any = 0.5) -> dict[str, Any]:
    return {"model": name, "parameters": {"weight": weight}}


def warned(folder: Path, method: str, *models: dict[str, Any], **recipe: Any) -> tuple[str, ...]:
    content = {"merge_method": method, "models": list(models), **recipe}
    return build_plan(recipe_over(folder, content)).warnings


def test_a_model_that_is_named_twice_is_told_of_under_any_of_its_names(folder: Path) -> None:
    assert warned(folder, "linear", entry("one"), entry("two")) == ()
    (same,) = warned(folder, "linear", entry("one"), entry("two"), entry("one"))
    assert same == "one is merged 2 times; name it once, with the weights added up"
    (folder / "link").symlink_to(folder / "one")
    (linked,) = warned(folder, "linear", entry("one"), entry("link"))
    assert linked.startswith("one, link is merged 2 times")


def test_a_base_that_is_listed_among_the_models_is_no_reason_to_warn(folder: Path) -> None:
    for method in ("linear", "task_arithmetic", "ties"):
        assert warned(folder, method, entry("base"), entry("one"), base_model="base") == ()


def test_unusual_weights_are_told_of_with_the_method(folder: Path) -> None:
    (warning,) = warned(folder, "task_arithmetic", entry("one", 1), entry("two", 1), base_model="base")
    assert warning.startswith("task_arithmetic: the weights count 2 in all")
    assert "(so for" not in warning


def test_weights_that_differ_by_layer_are_told_of_once(folder: Path) -> None:
    # 0.5 in all in the first layer, 1.75 in the second, 3 in the third.
    layers = [0.25, 1.5]
    (warning,) = warned(folder, "task_arithmetic", entry("one", layers), entry("two", layers), base_model="base")
    assert warning.startswith("task_arithmetic: the weights count 1.75 in all")
    assert warning.endswith("(so for layers.1.w; unusual for 2 of 3 tensors)")
