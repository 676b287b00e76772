"""A parameter's value: a number, a list over the layers, a choice by name."""

import math

import pytest

from merge_cli.recipe import Choice, resolve
from merge_cli.recipe.values import parse_value, plain_value


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (1, 1.0),
        (-2.5, -2.5),
        (0, 0.0),
        # YAML 1.1 reads a number with an exponent and no point as text.
        ("1e-8", 1e-8),
        (" 2 ", 2.0),
        (True, True),
        (False, False),
        ("model", "model"),
        ([1], (1.0,)),
        ([0, "1e-1", True], (0.0, 0.1, 1.0)),
        ({"value": 3}, Choice(((None, 3.0),))),
        ({"filter": "mlp", "value": [0, 1]}, Choice((("mlp", (0.0, 1.0)),))),
        ([{"filter": "*", "value": 3}], Choice(((None, 3.0),))),
        ([{"filter": "mlp", "value": 1}, {"value": "l1"}], Choice((("mlp", 1.0), (None, "l1")))),
    ],
)
def test_every_form_of_a_value_is_read(raw: object, value: object) -> None:
    assert parse_value(raw) == value
    assert type(parse_value(raw)) is type(value)


def test_a_number_is_a_float_and_a_boolean_stays_one() -> None:
    assert type(parse_value(1)) is float
    assert type(parse_value(True)) is bool


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (None, "finite number"),
        ([], "empty"),
        (math.nan, "finite number"),
        (math.inf, "finite number"),
        ("nan", "nan"),
        (10**400, "finite number"),
        ([1, "x"], "number, got 'x'"),
        ([1, None], "finite number"),
        ([1, {"value": 2}], "number"),
        ([[1, 2]], "number"),
        ({"filter": "mlp"}, "filter and value"),
        ({"filtre": "mlp", "value": 1}, "filter and value"),
        ({1: 2, "value": 1, "x": 3}, "filter and value"),
        ([{"filter": 3, "value": 1}], "filter is part of a tensor's name"),
        ([{"filter": "a", "value": [{"value": 1}]}], "not another choice"),
    ],
)
def test_what_is_no_value_is_refused(raw: object, says: str) -> None:
    if raw == "nan":
        # Not a number, so it can only be a word; the method's own type check refuses it.
        assert parse_value(raw) == "nan"
        return
    with pytest.raises(ValueError, match=says):
        parse_value(raw)


@pytest.mark.parametrize("raw", [0.5, True, "l1", [0.0, 1.0], [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 2.0}]])
def test_writing_a_value_undoes_reading_it(raw: object) -> None:
    assert plain_value(parse_value(raw)) == raw


def test_five_points_over_eight_layers() -> None:
    points = (0, 0.5, 0.3, 0.7, 1)
    found = [resolve(points, "any", layer / 7) for layer in range(8)]
    assert found == pytest.approx([0, 0.286, 0.471, 0.357, 0.414, 0.643, 0.829, 1], abs=5e-4)


def test_a_list_begins_at_the_first_layer_and_ends_at_the_last() -> None:
    assert resolve((2.0, 4.0), "any", 0.0) == 2
    assert resolve((2.0, 4.0), "any", 0.25) == 2.5
    assert resolve((2.0, 4.0), "any", 1.0) == 4
    assert resolve((3.0,), "any", 0.6) == 3


def test_the_first_filter_that_matches_decides() -> None:
    value = Choice((("attn", 1.0), ("q_proj", 2.0), (None, 3.0)))
    assert resolve(value, "layers.0.attn.q_proj", 0) == 1
    assert resolve(value, "layers.0.cross.q_proj", 0) == 2
    assert resolve(value, "norm", 0) == 3


def test_where_no_filter_matches_there_is_no_value() -> None:
    assert resolve(Choice((("attn", 1.0),)), "mlp", 0) is None


def test_a_filter_may_choose_a_list_over_the_layers() -> None:
    assert resolve(Choice((("attn", (0.0, 1.0)),)), "attn", 0.75) == 0.75
