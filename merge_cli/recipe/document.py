"""YAML text as plain data, with the line of everything, and without what YAML can do to a reader.

Aliases may make a small text denote a huge document, so what is built is bounded. Only plain values are made: a tag
that asks for an object is an error. Numbers follow YAML 1.1 (``1e-8`` arrives as text; the reader of values mends that).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from merge_cli.errors import RecipeError

_MOST_NODES = 100_000
_MERGE_TAG = "tag:yaml.org,2002:merge"
_PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A YAML document.

    Attributes:
        data: Mappings, lists and scalars.
        lines: Line (from 1) of every place, a place being the keys and indices that lead to it.
        anchored: Top-level keys whose value carries an anchor: they may exist for that alone.
    """

    data: Any
    lines: dict[Place, int]
    anchored: frozenset[str]


def parse_yaml(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: The YAML text.
        name: What errors call it.

    Raises:
        RecipeError: If the text is not one document of plain values.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        builder = _Builder(loader, name)
        data = builder.build(node, ()) if node is not None else None
    except yaml.composer.ComposerError as error:
        if "single document" in str(error):
            raise RecipeError(
                f"{name} holds several documents, which is not supported yet", hint="run each as a recipe of its own"
            ) from error
        raise _invalid(error, name) from error
    except yaml.MarkedYAMLError as error:
        raise _invalid(error, name) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{name} is not valid YAML: {str(error)[:200]}") from error
    finally:
        loader.dispose()
    return Document(data, builder.lines, frozenset(builder.anchored))


def _invalid(error: yaml.MarkedYAMLError, name: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}" if mark else name
    return RecipeError(f"{where}: not valid YAML: {error.problem or error.context}")


class _Loader(yaml.SafeLoader):
    """Remembers which nodes carry an anchor."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.with_anchor: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchored = not isinstance(event, yaml.AliasEvent) and getattr(event, "anchor", None) is not None
        node: yaml.Node | None = super().compose_node(parent, index)
        if anchored:
            self.with_anchor.add(id(node))
        return node


@dataclass
class _Builder:
    """Turns nodes into data, writing down lines on the way."""

    loader: _Loader
    name: str
    lines: dict[Place, int] = field(default_factory=dict)
    anchored: set[str] = field(default_factory=set)
    built: int = 0

    def build(self, node: yaml.Node, place: Place) -> Any:
        self.built += 1
        if self.built > _MOST_NODES:
            raise RecipeError(f"{self.name} denotes more than {_MOST_NODES} values; its aliases multiply each other")
        self.lines.setdefault(place, node.start_mark.line + 1)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            raise RecipeError(f"{self.name}:{node.start_mark.line + 1}: the tag {node.tag} is not a plain value")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*place, i)) for i, item in enumerate(node.value)]
        return self.loader.construct_object(node, deep=True)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        merged = [key for key, _ in node.value if key.tag == _MERGE_TAG]
        self.loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise RecipeError(f"{self.name}:{key_node.start_mark.line + 1}: the key {key!r} is not text")
            anchored = id(value_node) in self.loader.with_anchor
            if key in found and not merged and not (anchored and not place):
                raise RecipeError(f"{self.name}:{key_node.start_mark.line + 1}: '{key}' stands twice")
            if not place and (anchored or self._holds_anchor(value_node)):
                self.anchored.add(key)
            found[key] = self.build(value_node, (*place, key))
            self.lines[(*place, key)] = key_node.start_mark.line + 1
        return found

    def _holds_anchor(self, node: yaml.Node) -> bool:
        if id(node) in self.loader.with_anchor:
            return True
        if isinstance(node, yaml.MappingNode):
            return any(self._holds_anchor(value) for _, value in node.value)
        return isinstance(node, yaml.SequenceNode) and any(self._holds_anchor(item) for item in node.value)
