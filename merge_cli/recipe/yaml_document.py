"""YAML documents as plain data within bounds, with the line of every value.

Aliases may make a small text denote a huge document, so what is built is bounded. Only plain values are made: a tag
that asks for an object is an error. Numbers follow YAML 1.1 (``1e-8`` arrives as text; the reader of values fixes
that).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from merge_cli.checkpoint.bounded_json import is_text
from merge_cli.errors import RecipeError

_MOST_NODES = 100_000
# Longer than any number that a float can tell from infinity; YAML's own notations take quadratic time.
_MOST_DIGITS = 400
_MERGE_TAG = "tag:yaml.org,2002:merge"
_NUMBER_TAGS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

_INDENTATION = "is the indentation right? The entries of a list or mapping begin in the same column"
# Part of what PyYAML says -> what is usually wrong.
_HINTS = {
    "'\\t'": "indent with spaces; YAML takes no tabs",
    "mapping values are not allowed": f"{_INDENTATION}; a value that holds a colon needs quotes",
    "expected <block end>": _INDENTATION,
    "could not find expected ':'": f"is a colon missing, or a space after it? {_INDENTATION}",
    "expected ',' or": "is a bracket or a brace left open?",
    "found undefined alias": "a name that begins with * needs quotes",
    "cannot start any token": "a value that begins with this character needs quotes",
    "did not find expected alphabetic": "a name that begins with * or & needs quotes",
    "while scanning a quoted scalar": "is a quote left open?",
    "found unexpected end of stream": "is a quote left open?",
}

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A YAML document.

    Attributes:
        data: Mappings, lists and scalars.
        lines: Line (from 1) of every place, a place being the keys and indices that lead to it.
        anchored: Top-level keys in whose value an anchor stands: they may exist for that alone.
        repeated: Top-level keys that stand more than once, each time for an anchor -> line of the second.
    """

    data: Any
    lines: dict[Place, int]
    anchored: frozenset[str]
    repeated: dict[str, int]


def parse_yaml(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: The YAML text.
        name: What errors call it.

    Raises:
        RecipeError: If the text is not one document of plain values.
    """
    try:
        loader = _Loader(text, name)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not valid YAML: {str(error).splitlines()[0]}") from error
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
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not valid YAML: {str(error)[:200]}") from error
    except RecursionError as error:
        raise RecipeError(f"{name} is nested too deeply, or refers to itself") from error
    finally:
        loader.dispose()
    return Document(data, builder.lines, frozenset(loader.holders), loader.repeated)


def _invalid(error: yaml.MarkedYAMLError, name: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}" if mark else name
    problem = error.problem or error.context or ""
    hint = next((hint for part, hint in _HINTS.items() if part in problem), None)
    return RecipeError(f"{where}: not valid YAML: {problem}", hint=hint)


class _Loader(yaml.SafeLoader):
    """Remembers which top-level keys hold an anchor; refuses keys that stand twice, and merges that explode."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name
        self.holders: set[str] = set()
        self.repeated: dict[str, int] = {}
        self._holding: set[int] = set()
        self._anchors = 0
        self._depth = 0
        self._flattened = 0
        self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._composed += 1
        if self._composed > _MOST_NODES:
            raise _too_large(self.name)
        before = self._anchors
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if not isinstance(event, yaml.AliasEvent) and getattr(event, "anchor", None) is not None:
            self._anchors += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        top = self._depth == 1 and isinstance(parent, yaml.MappingNode) and isinstance(index, yaml.ScalarNode)
        if top and self._anchors > before:
            self._holding.add(id(index))
            self.holders.add(index.value)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        self._depth += 1
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        self._depth -= 1
        # Here, because merging what `<<` names puts keys beside each other that override one another.
        found: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
                continue
            if key.value in found:
                line = key.start_mark.line + 1
                if self._depth or id(key) not in self._holding:
                    raise RecipeError(f"{self.name}:{line}: '{key.value}' stands twice")
                self.repeated.setdefault(key.value, line)
            found.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        self._flattened += len(node.value)
        if self._flattened > _MOST_NODES:
            raise _too_large(self.name)


def _too_large(name: str) -> RecipeError:
    return RecipeError(
        f"{name} denotes more than {_MOST_NODES} values, more than any recipe",
        hint="do its aliases multiply each other?",
    )


@dataclass
class _Builder:
    """Turns nodes into data, writing down lines on the way."""

    loader: _Loader
    name: str
    lines: dict[Place, int] = field(default_factory=dict)
    built: int = 0

    def build(self, node: yaml.Node, place: Place) -> Any:
        self.built += 1
        if self.built > _MOST_NODES:
            raise _too_large(self.name)
        self.lines.setdefault(place, node.start_mark.line + 1)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            raise RecipeError(f"{self.name}:{node.start_mark.line + 1}: the tag {node.tag} is not a plain value")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*place, i)) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        line = node.start_mark.line + 1
        if node.tag in _NUMBER_TAGS and len(node.value) > _MOST_DIGITS:
            what = f"{node.value[:40]!r}... is not a value of type {node.tag.rpartition(':')[2]}"
            raise RecipeError(f"{self.name}:{line}: {what}: it has {len(node.value)} characters")
        try:
            value = self.loader.construct_object(node, deep=True)
        except yaml.YAMLError:
            raise
        # A tag that does not suit its text makes PyYAML raise whatever it stumbles over: KeyError, IndexError, ...
        except Exception as error:
            what = f"{str(node.value)[:40]!r} is not a value of type {node.tag.rpartition(':')[2]}"
            raise RecipeError(f"{self.name}:{line}: {what}") from error
        if isinstance(value, str) and not is_text(value):
            raise RecipeError(f"{self.name}:{line}: {value[:40]!r} has half of a surrogate pair, which is not text")
        return value

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        self.loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                what = f"'{key_node.value}'" if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                raise RecipeError(f"{self.name}:{key_node.start_mark.line + 1}: the key {what} is not text")
            found[key] = self.build(value_node, (*place, key))
            self.lines[(*place, key)] = key_node.start_mark.line + 1
        return found
