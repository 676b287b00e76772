"""The JSON Schema of recipes, for editors."""

from __future__ import annotations

from typing import Any

from merge_cli.methods import find_method, find_step, method_names, step_names
from merge_cli.recipe.schema import Recipe
from merge_cli.recipe.values import VALUE_SCHEMA


def recipe_json_schema() -> dict[str, Any]:
    """Return a schema in which methods, their parameters and the preparing steps are spelled out."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "merge-cli recipe"
    schema["properties"]["merge_method"]["enum"] = list(method_names())
    schema["$defs"]["Value"] = VALUE_SCHEMA
    schema["$defs"]["Parameters"] = {"type": ["object", "null"], "properties": _parameters()}
    for holder in (schema, schema["$defs"]["ModelEntry"]):
        said = holder["properties"]["parameters"]["description"]
        holder["properties"]["parameters"] = {"$ref": "#/$defs/Parameters", "description": said}
    schema["properties"]["models"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/ModelEntry"}]}
    schema["properties"]["exclude"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Exclusion"}]}
    steps = {name: find_step(name).params.model_json_schema() for name in step_names()}
    schema["properties"]["prepare"] |= {"properties": steps, "additionalProperties": False}
    return schema


def _parameters() -> dict[str, Any]:
    """Describe every parameter of every method; one that several have lists what it means to each."""
    meanings: dict[str, dict[str, list[str]]] = {}
    for name in method_names():
        for field_name, field in find_method(name).params.model_fields.items():
            said = meanings.setdefault(field.alias or field_name, {})
            said.setdefault(field.description or "", []).append(name)
    return {
        name: {
            "$ref": "#/$defs/Value",
            "description": "; ".join(f"{', '.join(users)}: {text}" for text, users in said.items()),
        }
        for name, said in sorted(meanings.items())
    }
