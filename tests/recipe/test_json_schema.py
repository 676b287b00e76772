"""The JSON Schema that editors use says what the loader does."""

import json
from typing import Any

import pytest
import yaml

from merge_cli.methods import find_method, find_step, method_names, step_names
from merge_cli.recipe import Recipe, recipe_json_schema
from tests.recipe.examples import BAD, GOOD


def _keys(model: Any) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def test_it_is_json_and_names_its_dialect() -> None:
    schema = recipe_json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"].startswith("https://json-schema.org/")


def test_it_knows_every_key_and_no_other() -> None:
    schema = recipe_json_schema()
    assert set(schema["properties"]) == _keys(Recipe)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["merge_method", "models"]
    assert schema["$defs"]["ModelEntry"]["additionalProperties"] is False
    assert "from" in schema["$defs"]["Exclusion"]["properties"]


def test_it_knows_every_method_parameter_and_step() -> None:
    schema = recipe_json_schema()
    assert schema["properties"]["merge_method"]["enum"] == list(method_names())
    parameters = schema["$defs"]["Parameters"]["properties"]
    assert set(parameters) == {key for name in method_names() for key in _keys(find_method(name).params)}
    assert all(said["description"] for said in parameters.values())
    steps = schema["properties"]["prepare"]["properties"]
    assert {name: set(step["properties"]) for name, step in steps.items()} == {
        name: _keys(find_step(name).params) for name in step_names()
    }


def test_every_reference_in_it_leads_somewhere() -> None:
    schema = recipe_json_schema()

    def walk(at: Any) -> None:
        if isinstance(at, dict):
            if "$ref" in at:
                kind, _, name = at["$ref"].rpartition("/")
                assert kind == "#/$defs"
                assert name in schema["$defs"]
            for value in at.values():
                walk(value)
        elif isinstance(at, list):
            for value in at:
                walk(value)

    walk(schema)


@pytest.mark.parametrize("name", GOOD)
def test_it_accepts_what_the_loader_reads(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(recipe_json_schema()).validate(yaml.safe_load(GOOD[name]))


@pytest.mark.parametrize("name", BAD)
def test_it_rejects_what_the_loader_refuses(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(recipe_json_schema())
    validator.check_schema(recipe_json_schema())
    assert list(validator.iter_errors(yaml.safe_load(BAD[name])))
