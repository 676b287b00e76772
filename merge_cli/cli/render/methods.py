"""Tables of the merge methods and their parameters."""

from __future__ import annotations

import json
from typing import Any

from merge_cli.cli.example_recipe import example_recipe
from merge_cli.cli.render.console import new_console, new_table
from merge_cli.cli.results import print_json
from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import field_default, is_constant, is_per_model, must_be_given


def methods(*, as_json: bool) -> None:
    """List the methods."""
    found = {name: find_method(name) for name in method_names()}
    if as_json:
        print_json({"methods": {name: method.summary for name, method in found.items()}})
        return
    table = new_table("method", "what it does", "parameters")
    for name, method in found.items():
        table.add_row(name, method.summary, ", ".join(f.alias or n for n, f in method.params.model_fields.items()))
    new_console().print(table)


def method(name: str, *, as_json: bool) -> None:
    """Describe one method."""
    found = find_method(name)
    if as_json:
        content = {
            "name": name, "summary": found.summary, "equation": found.equation, "source": found.source,
            "differs": found.differs, "version": found.version, "parameters": found.params.model_json_schema(),
        }  # fmt: skip
        print_json(content)
        return
    console = new_console()
    console.print(f"{name}: {found.summary}\n\n  {found.equation}\n")
    table = new_table("parameter", "default", "takes", "")
    properties = found.params.model_json_schema()["properties"]
    for field_name, field in found.params.model_fields.items():
        key = field.alias or field_name
        default = field_default(field)
        kind = "per model" if is_per_model(field) else "one value" if is_constant(field) else ""
        takes = ", ".join(filter(None, [_takes(properties[key]), kind]))
        table.add_row(key, "required" if must_be_given(field) else _plain(default), takes, field.description or "")
    console.print(table)
    console.print(f"\nsource: {found.source}")
    if found.differs:
        console.print(f"differs: {found.differs}")
    console.print(f"\nexample:\n\n{example_recipe(name)}")


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else "from the file" if value is None else str(value)


def _takes(schema: dict[str, Any]) -> str:
    """Say in a few words which values a JSON schema admits."""
    if schema.get("type") == "array":
        return _takes(schema.get("items", {}))
    if "anyOf" in schema:
        return " | ".join(filter(None, (_takes(choice) for choice in schema["anyOf"])))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    low, high = schema.get("minimum"), schema.get("maximum")
    kind = {"boolean": "true | false", "null": ""}.get(schema.get("type", ""), schema.get("type", ""))
    if low is not None and high is not None:
        return f"{kind} in [{low:g}, {high:g}]"
    if "exclusiveMinimum" in schema:
        return f"{kind} > {schema['exclusiveMinimum']:g}" + (f", <= {high:g}" if high is not None else "")
    return f"{kind} >= {low:g}" if low is not None else kind
