"""YAML text as plain data, and what text may not do to its reader."""

import time

import pytest

from merge_cli.errors import RecipeError
from merge_cli.recipe.yaml_document import parse_yaml


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "r.yml")
    return str(caught.value)


def test_every_place_has_its_line() -> None:
    document = parse_yaml("a: 1\nb:\n  - x\n  - c: 2\n    d: [3,\n      4]\n", "r.yml")
    assert document.data == {"a": 1, "b": ["x", {"c": 2, "d": [3, 4]}]}
    expected = {("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "c"): 4, ("b", 1, "d"): 5, ("b", 1, "d", 1): 6}
    assert {place: document.lines[place] for place in expected} == expected


def test_aliases_and_merge_keys_are_followed() -> None:
    text = "base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nlist: [*b, *b]\n"
    document = parse_yaml(text, "r.yml")
    assert document.data["use"] == {"x": 1, "y": 3}
    assert document.data["list"] == [{"x": 1, "y": 2}] * 2
    assert document.anchored == {"base"}


def test_a_key_that_only_uses_an_anchor_does_not_hold_one() -> None:
    text = "a: {deep: [&x 1]}\nb: *x\nc: {d: *x}\ne: &y {<<: {f: 1}}\n<<: *y\n"
    assert parse_yaml(text, "r.yml").anchored == {"a", "e"}


def test_what_is_made_from_one_anchor_is_not_one_object() -> None:
    first, second = parse_yaml("a: &x [1]\nb: *x\n", "r.yml").data.values()
    assert first == second
    assert first is not second


def test_a_mapping_with_a_merge_key_may_be_used_again() -> None:
    text = "one: &one {x: 1}\ntwo: &two\n  <<: *one\n  x: 2\nuse: [*two, *two]\n"
    assert parse_yaml(text, "r.yml").data["use"] == [{"x": 2}, {"x": 2}]


def test_an_earlier_merge_wins_over_a_later_one() -> None:
    text = "one: &one {x: 1}\ntwo: &two {x: 2, y: 2}\nuse: {<<: [*one, *two]}\n"
    assert parse_yaml(text, "r.yml").data["use"] == {"x": 1, "y": 2}


def test_the_key_of_an_anchor_may_stand_again_and_again() -> None:
    document = parse_yaml("tag: &A one\ntag: &B two\nuse: [*A, *B]\n", "r.yml")
    assert document.data["use"] == ["one", "two"]
    assert document.repeated == {"tag": 2}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", 3),
        ("a:\n  b: 1\n  b: 1\n", 3),
        ("a:\n  b: &x 1\n  b: &y 2\n", 3),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2\n", 5),
        ("y:\n  <<: {b: 1,\n    b: 2}\n", 3),
        ("'a': 1\n\"a\": 2\n", 2),
        ("x: &x 1\na: *x\na: *x\n", 3),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str, line: int) -> None:
    assert refused(text).startswith(f"r.yml:{line}: '")
    assert "stands twice" in refused(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: !!python/object/apply:os.system [echo]\n", "r.yml:1"),
        ("a: !!python/name:os.system x\n", "r.yml:1"),
        ("a:\n  !!set {x, y}\n", "r.yml:2: the tag tag:yaml.org,2002:set is not a plain value"),
        ("a: !mine {x: 1}\n", "!mine"),
        ("a: !mine x\n", "!mine"),
        ("a: !!bool maybe\n", "r.yml:1: 'maybe' is not a value of type bool"),
        ("a: !!int ''\n", "r.yml:1: '' is not a value of type int"),
        ("a: !!timestamp x\n", "r.yml:1: 'x' is not a value of type timestamp"),
        ("a: 1" + "0" * 5000, "is not a value of type int"),
        ("a: [1, 2\nb: 3\n", "r.yml:2: not valid YAML"),
        ("a:\n  - b\n c\n", "hint: is the indentation right?"),
        ("a:\n  b: 1\n c: 2\n", "r.yml:3: not valid YAML"),
        ("a:\n  b: 1\n c: 2\n", "hint: is the indentation right?"),
        ("a: 1\n  b: 2\n", "hint: is the indentation right?"),
        ("a:\n\t- b\n", "hint: indent with spaces"),
        ("a: [1, 2\nb: 3\n", "hint: is a bracket or a brace left open?"),
        ("a: 'x\n", "hint: is a quote left open?"),
        ("a: @x\n", "needs quotes"),
        ("a: *x\n", "needs quotes"),
        ("a: *missing\n", "r.yml:1: not valid YAML: found undefined alias"),
        ("\ta: 1\n", "r.yml:1: not valid YAML"),
        ("a: \x00\n", "r.yml is not valid YAML: unacceptable character"),
        ("a: 1\nx: &x 3\nb: {<<: *x}\n", ": not valid YAML: expected a mapping"),
        ('a:\n  - "\\ud800"\n', "r.yml:2: '\\ud800' has half of a surrogate pair"),
        ("1: a\n", "r.yml:1: the key '1' is not text"),
        ("a: 1\n? [x, y]\n: 3\n", "r.yml:2: the key a list or mapping is not text"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_place(text: str, says: str) -> None:
    assert says in refused(text)


def test_several_documents_are_refused_by_name() -> None:
    assert "r.yml holds several documents, which is not supported yet" in refused("a: 1\n---\nb: 2\n")


def test_one_document_may_have_its_marks() -> None:
    assert parse_yaml("---\na: 1\n...\n", "r.yml").data == {"a": 1}


def test_an_empty_text_is_nothing() -> None:
    assert parse_yaml("# only a comment\n", "r.yml").data is None


@pytest.mark.parametrize(
    "text", ["a: &a [*a]\n", "&a\nb: *a\n", "a: " + "[" * 3000 + "]" * 3000, "a: &a {<<: *a, b: *a}\n"]
)
def test_a_text_without_an_end_is_refused(text: str) -> None:
    assert "nested too deeply" in refused(text)


def _nested(inner: str, open_: str, close: str, levels: int, copies: int) -> str:
    """Write a value in which each level holds the one below it many times."""
    for level in range(levels):
        inner = f"{open_}&a{level} {inner}{f', *a{level}' * copies}{close}"
    return f"x: {inner}\n"


@pytest.mark.parametrize(
    "text",
    [
        _nested("[1]", "[", "]", levels=9, copies=9),
        "a: &a [" + "1, " * 2000 + "]\nb: [" + "*a, " * 2000 + "]\n",
        "a: &a {" + ", ".join(f"k{i}: 1" for i in range(2000)) + "}\nb: {<<: [" + "*a, " * 2000 + "]}\n",
    ],
    ids=["lists", "wide", "wide merges"],
)
def test_a_small_text_that_denotes_a_huge_document_is_refused_at_once(text: str) -> None:
    began = time.process_time()
    assert "its aliases multiply each other" in refused(text)
    assert time.process_time() - began < 20


def test_keys_that_are_merged_again_and_again_are_refused_or_small() -> None:
    """PyYAML drops keys that a merge repeats since 6.0.4, so that one is left; before, it keeps 9^9 of them."""
    began = time.process_time()
    try:
        data = parse_yaml(_nested("{k: v}", "{<<: [", "]}", levels=9, copies=9), "r.yml").data
    except RecipeError as error:
        assert "its aliases multiply each other" in str(error)  # noqa: PT017
    else:
        assert data == {"x": {"k": "v"}}
    assert time.process_time() - began < 20


def test_a_large_recipe_is_read() -> None:
    document = parse_yaml("a:\n" + "".join(f"  - {{filter: f{i}, value: {i}}}\n" for i in range(1000)), "r.yml")
    assert len(document.data["a"]) == 1000
    assert document.lines["a", 999, "value"] == 1001
