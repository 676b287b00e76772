"""What a parameter is for one tensor: the model's own value, else the recipe's, else the method's default."""

from pathlib import Path
from typing import Any

import pytest

from merge_cli.errors import RecipeError
from merge_cli.plan import build_plan
from tests.checkpoints import recipe_over, write_checkpoint

LAYERS = 8
NAMES = [
    "embed.weight",
    *(f"layers.{i}.{part}.weight" for i in range(LAYERS) for part in ("attn", "mlp")),
    "head.weight",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "one", "two"):
        write_checkpoint(tmp_path / name, {tensor: [1.0] for tensor in NAMES}, config={"num_hidden_layers": LAYERS})
    return tmp_path


def resolved(folder: Path, method: str, models: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    """Return tensor -> its parameters."""
    content = {"merge_method": method, "base_model": "base", "models": models, "parameters": parameters}
    plan = build_plan(recipe_over(folder, content))
    return {task.target.name: task.params for task in plan.merged}


def entry(name: str, **parameters: Any) -> dict[str, Any]:
    return {"model": name, "parameters": parameters}


def refused(folder: Path, method: str, models: list[dict[str, Any]], **parameters: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        resolved(folder, method, models, **parameters)
    return str(caught.value)


def test_five_points_over_eight_layers_and_the_first_one_outside_of_them(folder: Path) -> None:
    found = resolved(folder, "slerp", [entry("one")], t=[0, 0.5, 0.3, 0.7, 1])
    wanted = [0, 0.286, 0.471, 0.357, 0.414, 0.643, 0.829, 1]
    for part in ("attn", "mlp"):
        ts = [found[f"layers.{i}.{part}.weight"].t for i in range(LAYERS)]
        assert ts == pytest.approx(wanted, abs=5e-4)
    found = resolved(folder, "slerp", [entry("one")], t=[0.25, 1])
    assert found["embed.weight"].t == found["head.weight"].t == 0.25


def test_a_models_own_value_comes_before_the_recipes_and_that_before_the_default(folder: Path) -> None:
    found = resolved(folder, "ties", [entry("one", weight=3), entry("two")], weight=2)
    assert {params.weight for params in found.values()} == {(3.0, 2.0)}
    assert {params.density for params in found.values()} == {(1.0, 1.0)}


def test_where_no_filter_of_the_model_matches_the_recipe_is_asked_and_then_the_default(folder: Path) -> None:
    found = resolved(
        folder,
        "ties",
        [entry("one", weight=[{"filter": "attn", "value": 3}], density={"filter": "attn", "value": 0.5}), entry("two")],
        weight=[{"filter": "mlp", "value": [0, 7]}, {"value": 1}],
    )
    assert found["layers.2.attn.weight"].weight == (3, 1)
    assert found["layers.2.mlp.weight"].weight == (2, 2)
    assert found["head.weight"].weight == (1, 1)
    assert found["layers.2.attn.weight"].density == (0.5, 1)
    assert found["layers.2.mlp.weight"].density == (1, 1)


def test_zero_and_false_are_values_like_any_other(folder: Path) -> None:
    found = resolved(folder, "ties", [entry("one", weight=0)], weight=2, normalize=False)
    assert found["head.weight"].weight == (0,)
    assert found["head.weight"].normalize is False


@pytest.mark.parametrize(("written", "meant"), [(1.0, True), (0.0, False), (True, True), ("false", False), (1, True)])
def test_a_boolean_may_be_written_as_a_number(folder: Path, written: object, meant: bool) -> None:
    assert resolved(folder, "ties", [entry("one", weight=1)], normalize=written)["head.weight"].normalize is meant


def test_true_is_one_where_a_number_is_wanted(folder: Path) -> None:
    assert resolved(folder, "ties", [entry("one", weight=True)])["head.weight"].weight == (1.0,)


def test_a_required_value_that_is_missing_is_named(folder: Path) -> None:
    said = refused(folder, "ties", [entry("one", weight=1), entry("two")])
    assert "models.1: ties needs weight of two" in said
    assert "hint: add `parameters: {weight: ...}` to the model, or to the recipe for all models" in said
    assert "recipe:1: merge_method: slerp needs t" in refused(folder, "slerp", [entry("one")])


def test_a_required_value_that_no_filter_gives_is_named_with_the_tensor(folder: Path) -> None:
    said = refused(folder, "ties", [entry("one", weight=[{"filter": "attn", "value": 1}])])
    assert "models.0: ties needs weight of one for embed.weight, which no filter matches" in said
    said = refused(folder, "ties", [entry("one")], weight=[{"filter": "embed", "value": 1}])
    assert "ties needs weight of one for head.weight, which no filter matches" in said
    said = refused(folder, "slerp", [entry("one")], t=[{"filter": "embed", "value": 1}])
    assert "parameters.t: slerp needs t for head.weight, which no filter matches" in said


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"density": 1.5}, "parameters.density: expected at most 1, got 1.5"),
        ({"weight": "much"}, "parameters.weight: expected a number, got 'much'"),
        ({"normalize": 0.5}, "parameters.normalize: expected true or false, got 0.5"),
        ({"trim": "all"}, "parameters.trim: expected 'tensor' or 'model', got 'all'"),
        ({"trim": [1, 2]}, "parameters.trim: must be the same for every tensor, got a list or filters"),
        ({"elect": [{"value": "count"}]}, "parameters.elect: must be the same for every tensor"),
    ],
)
def test_a_value_that_the_method_does_not_take_is_refused_with_its_place(
    folder: Path, parameters: dict[str, Any], says: str
) -> None:
    models = [entry("one") if "weight" in parameters else entry("one", weight=1)]
    said = refused(folder, "ties", models, **parameters)
    assert says in said
    assert said.startswith("recipe:")


def test_a_wrong_value_in_a_model_is_found_there(folder: Path) -> None:
    said = refused(folder, "ties", [entry("one", weight=1), entry("two", weight=1, density=-1)])
    assert "models.1.parameters.density" in said


def test_weights_that_cancel_are_refused_where_they_are_divided_by(folder: Path) -> None:
    said = refused(folder, "linear", [entry("one", weight=1), entry("two", weight=-1)])
    assert "the weights sum to zero" in said
    # ... also where they do so in one layer only.
    said = refused(folder, "linear", [entry("one", weight=[2, 1]), entry("two", weight=-1)])
    assert "(for layers.7.attn.weight)" in said


def test_a_density_that_counts_in_the_model_must_be_the_same_for_every_tensor(folder: Path) -> None:
    said = refused(folder, "ties", [entry("one", weight=1, density=[0.1, 0.9])], trim="model")
    assert "density counts in the whole model here, so it must be the same for every tensor" in said
    resolved(folder, "ties", [entry("one", weight=1, density=[0.1, 0.9])], trim="tensor")


def test_tensors_with_the_same_parameters_share_one_object(folder: Path) -> None:
    found = resolved(folder, "ties", [entry("one", weight=[{"filter": "attn", "value": 3}, {"value": 1}])])
    assert len({id(params) for params in found.values()}) == 2
