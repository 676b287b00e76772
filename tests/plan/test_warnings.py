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


def test_a_base_that_is_a_model_among_others_is_no_reason_to_warn(folder: Path) -> None:
    assert warned(folder, "linear", entry("base"), entry("one"), base_model="base") == ()


def test_a_base_with_a_weight_of_its_own_is_told_of_where_it_cannot_count(folder: Path) -> None:
    for method in ("task_arithmetic", "ties"):
        assert warned(folder, method, entry("base"), entry("one"), base_model="base") == (
            "base is the base and one of the models: its task vector is zero, so it is left out and its weight not "
            "used",
        )


def test_a_base_that_is_listed_without_parameters_as_published_recipes_do_is_a_note(folder: Path) -> None:
    content = {"merge_method": "ties", "base_model": "base", "models": [{"model": "base"}, entry("one")]}
    plan = build_plan(recipe_over(folder, content))
    assert plan.warnings == ()
    assert plan.notes == ("base is the base and one of the models: its task vector is zero, so it is left out",)


# --- filters ----------------------------------------------------------------------------------------------------------


def test_a_filter_that_matches_no_tensor_is_told_of_with_a_guess(folder: Path) -> None:
    weight = [{"filter": "layer.", "value": 1}, {"value": 0.5}]
    (warning,) = warned(folder, "linear", entry("one", weight), entry("two"))
    assert warning.endswith(
        "models.0.parameters.weight: filter 'layer.' is in the name of no tensor that is merged; did you mean 'layers'?"
    )


def test_filters_without_a_default_say_what_the_rest_gets(folder: Path) -> None:
    density = [{"filter": "layers.1", "value": 0.5}]
    models = [{"model": "one", "parameters": {"weight": 0.5, "density": density}}]
    content = {"merge_method": "ties", "base_model": "base", "models": models, "parameters": {"density": 0.25}}
    plan = build_plan(recipe_over(folder, content))
    assert plan.warnings == ()
    (note,) = plan.notes
    assert note.endswith("density: no filter matches 2 tensors, such as layers.0.w; there it is 0.25")


def test_filters_with_a_default_or_for_all_tensors_are_no_reason_for_a_word(folder: Path) -> None:
    for rest in ({"value": 0.5}, {"filter": "w", "value": 0.5}):
        weight = [{"filter": "layers.1", "value": 0.5}, rest]
        plan = build_plan(
            recipe_over(folder, {"merge_method": "linear", "models": [entry("one", weight), entry("two")]})
        )
        assert (plan.warnings, plan.notes) == ((), ())


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
