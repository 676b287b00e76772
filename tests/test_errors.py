import pytest

from merge_cli import errors
from merge_cli.errors import (
    BusyError,
    CheckpointError,
    Interrupted,
    MergeError,
    RecipeError,
    ResourceError,
    VerificationError,
    WriteError,
)
from merge_cli.text import did_you_mean, listed, printable


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (MergeError, 1), (RecipeError, 2), (CheckpointError, 3), (ResourceError, 4), (VerificationError, 5),
        (Interrupted, 130), (WriteError, 6), (BusyError, 75),
    ],
)  # fmt: skip
def test_a_script_tells_the_failures_apart_by_their_exit_codes(kind: type[MergeError], code: int) -> None:
    assert kind("x").exit_code == code
    assert issubclass(kind, MergeError)


def test_every_failure_stands_in_the_tree_of_the_docstring_with_its_code() -> None:
    assert errors.__doc__ is not None
    for kind in [*MergeError.__subclasses__(), *ResourceError.__subclasses__()]:
        line = next(line for line in errors.__doc__.splitlines() if f" {kind.__name__} " in line)
        assert line.split(f" {kind.__name__} ")[1].split()[0] == str(kind.exit_code)


def test_a_failure_is_written_as_its_message_and_its_hint_on_a_line_of_its_own() -> None:
    error = RecipeError("recipe.yml:5: ties has no such parameter", hint="did you mean 'density'?")
    assert str(error) == "recipe.yml:5: ties has no such parameter\n  hint: did you mean 'density'?"
    assert (error.message, error.hint) == ("recipe.yml:5: ties has no such parameter", "did you mean 'density'?")


def test_a_failure_without_a_hint_is_its_message() -> None:
    assert str(CheckpointError("x is missing")) == "x is missing"
    assert CheckpointError("x is missing").hint is None


def test_a_failure_survives_being_sent_to_another_process() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ResourceError("disk full", hint="free some")))
    assert isinstance(error, ResourceError)
    assert (error.message, error.hint, error.exit_code) == ("disk full", "free some", 4)


def test_a_misspelling_is_answered_with_the_closest_name() -> None:
    assert did_you_mean("denisty", ["density", "lambda", "weight"]) == "did you mean 'density'?"
    assert did_you_mean("bfloat61", iter(["bfloat16", "float16"])) == "did you mean 'bfloat16'?"


def test_nothing_is_guessed_where_nothing_is_close() -> None:
    assert did_you_mean("quux", ["density", "lambda"]) is None
    assert did_you_mean("x", []) is None


def test_a_long_list_is_cut_and_counted() -> None:
    assert listed([]) == ""
    assert listed(["a"]) == "a"
    assert listed("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert listed("abcdefghi") == "a, b, c, d, e, f, g, h and 1 more"
    assert listed((str(number) for number in range(100)), most=2) == "0, 1 and 98 more"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 層 [red]'x'\\ \n y", "größe 層 [red]'x'\\ \n y"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\rb\x00\x7f\x9b", "a\\rb\\x00\\x7f\\x9b"),
        ("\u202eabc\u200b", "\\u202eabc\\u200b"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
