"""Recipes in the styles in which they are published."""

from pathlib import Path

import pytest

from merge_cli.errors import RecipeError
from merge_cli.methods import method_names
from merge_cli.recipe import load_recipe, parse_recipe
from tests.recipe.examples import BAD, GOOD

_COLLECTION = Path(__file__).parents[2].parent / "shared" / "recipes"
_LOADABLE = {"02_daredevil_7b_dare_ties.yml", "24_midnight_miqu_70b_v15_dare_linear.yml"}


@pytest.mark.parametrize("name", GOOD)
def test_a_recipe_in_a_published_style_is_read(name: str) -> None:
    recipe = parse_recipe(GOOD[name])
    assert recipe.merge_method in method_names()
    assert recipe.models


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_recipe_is_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(BAD[name])


def test_a_null_entry_a_float_for_a_boolean_and_an_exponent_mean_what_their_author_meant() -> None:
    base = parse_recipe(GOOD["base listed among the models, with no parameters"])
    assert base.models[0].parameters == {}
    assert [warning.partition(": ")[2] for warning in base.origin.warnings] == [
        "parameters.int8_mask: dare_ties has no such parameter; it is not used"
    ]
    filters = parse_recipe(GOOD["filters in each model, numbers for booleans"])
    assert filters.parameters == {"normalize": 1.0}
    assert (filters.dtype, filters.out_dtype) == ("float32", "bfloat16")
    assert filters.origin.warnings == ()


@pytest.mark.skipif(not _COLLECTION.is_dir(), reason="the collection of published recipes is not here")
def test_published_recipes_are_read_or_refused_by_name() -> None:
    refused: dict[str, str] = {}
    for path in sorted(_COLLECTION.glob("*.yml")):
        try:
            load_recipe(path)
        except RecipeError as error:
            refused[path.name] = str(error)
    assert not _LOADABLE & refused.keys()
    for name, said in refused.items():
        assert ("did you mean 'bfloat16'" if "bad_dtype" in name else "not supported yet") in said, name
