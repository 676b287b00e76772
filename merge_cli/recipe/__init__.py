"""Recipes: read from YAML text and checked, with the line of each error."""

from merge_cli.recipe.explaining import said_of
from merge_cli.recipe.json_schema import recipe_json_schema
from merge_cli.recipe.load import check_recipe, load_recipe, parse_recipe
from merge_cli.recipe.schema import Exclusion, ModelEntry, Origin, Recipe
from merge_cli.recipe.values import Choice, resolve

__all__ = [
    "Choice",
    "Exclusion",
    "ModelEntry",
    "Origin",
    "Recipe",
    "check_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_json_schema",
    "resolve",
    "said_of",
]
