"""``--set place=value`` changes any value of a recipe."""

import pytest

from merge_cli.errors import RecipeError
from merge_cli.recipe import Choice, parse_recipe
from merge_cli.recipe.overrides import text_with

TEXT = """merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: 1, density: [{filter: mlp, value: 0.5}, {value: 1}]}
  - model: b
    parameters: {weight: 2}
"""


def test_a_value_inside_lists_and_mappings_is_replaced() -> None:
    recipe = parse_recipe(
        TEXT, overrides=["models.1.parameters.weight=0.3", "models.0.parameters.density.0.value=1e-2"]
    )
    assert recipe.models[1].parameters["weight"] == 0.3
    assert recipe.models[0].parameters["density"] == Choice((("mlp", 0.01), (None, 1.0)))
    assert recipe.models[0].parameters["weight"] == 1


def test_parents_that_are_not_there_are_made() -> None:
    recipe = parse_recipe(TEXT, overrides=["parameters.lambda=0.5", "prepare.dare.drop_rate=0.9", "seed=3"])
    assert recipe.parameters == {"lambda": 0.5}
    assert recipe.prepare == {"dare": {"drop_rate": 0.9}}
    assert recipe.seed == 3


def test_a_value_is_read_as_yaml() -> None:
    recipe = parse_recipe(
        TEXT,
        overrides=[
            "models.0.parameters.weight=[0, 1]",
            "parameters={normalize: false}",
            "name=a=b",
            "base_model=./c d",
        ],
    )
    assert recipe.models[0].parameters["weight"] == (0.0, 1.0)
    assert recipe.parameters == {"normalize": False}
    assert recipe.name == "a=b"
    assert recipe.base_model == "./c d"


def test_later_ones_win_and_all_are_remembered() -> None:
    recipe = parse_recipe(TEXT, overrides=["seed=1", "seed=2"])
    assert recipe.seed == 2
    assert recipe.origin.overrides == ("seed=1", "seed=2")


def test_the_text_of_the_recipe_stays_as_written() -> None:
    assert parse_recipe(TEXT, overrides=["seed=1"]).origin.text == TEXT


@pytest.mark.parametrize("override", ["seed", "=3", "", "parameters..weight=1", ".seed=1", "seed.=1"])
def test_what_is_no_assignment_is_refused(override: str) -> None:
    with pytest.raises(RecipeError, match="expected place=value"):
        parse_recipe(TEXT, overrides=[override])


@pytest.mark.parametrize(
    "place", ["models.2.model", "models.x.model", "models.-1.model", "models.²", "models." + "9" * 5000]
)
def test_a_place_outside_of_a_list_is_refused(place: str) -> None:
    with pytest.raises(RecipeError, match="is not a position in a list of 2, 0 first"):
        parse_recipe(TEXT, overrides=[f"{place}=c"])


def test_there_is_nothing_inside_a_single_value() -> None:
    with pytest.raises(RecipeError, match=r"'weight' is a single value; there is nothing inside it"):
        parse_recipe(TEXT, overrides=["models.0.parameters.weight.0=1"])


@pytest.mark.parametrize(
    "text", ["[1", "!!python/object/apply:os.system [echo]", "!!int x", "{a: 1, a: 2}", "1\n---\n2"]
)
def test_what_is_no_yaml_value_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is not a YAML value"):
        parse_recipe(TEXT, overrides=[f"seed={text}"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sed=3", "recipe: sed: there is no such key here; did you mean 'seed'?"),
        ("parameters.lamda=3", "recipe: parameters.lamda: ties has no such parameter"),
        ("dtype=bfloat", "did you mean 'bfloat16'?"),
        ("slices=[]", "not supported yet"),
        ("models=", "recipe:3: models: expected a list"),
    ],
)
def test_what_is_set_is_checked_like_what_is_written(override: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(TEXT, overrides=[override])
    assert says in str(caught.value)


def test_the_text_with_values_changed_is_a_recipe_that_has_them() -> None:
    text = "# mine\nmerge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 1}\n"
    assert text_with(text, "r", []) == text
    changed = parse_recipe(text_with(text, "r", ["models.0.parameters.weight=0.25", "dtype=bfloat16"]))
    assert changed.models[0].parameters["weight"] == 0.25
    assert changed.dtype == "bfloat16"
