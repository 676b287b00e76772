"""Which columns are used, by their names and what they hold, and what is said of the others."""

from typing import Any

import pytest

from merge_cli.errors import RecipeError
from merge_cli.fisher import Columns, Task
from merge_cli.fisher.data import Rows
from merge_cli.fisher.layouts import Form, Layout, choose_layout, require_label

LONG = "one two three four five"
CHINESE = "\u6211\u4eec\u5728\u8fd9\u91cc\u7b49\u4f60\u4eec"
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def choose(task: Task, row: dict[str, Any], columns: Columns | None = None) -> Layout:
    return choose_layout(task, Rows(tuple(row), 2, [row, row]), columns or Columns())


@pytest.mark.parametrize(
    ("first", "second", "others"),
    [
        ("premise", "hypothesis", {"genre": "fiction", "promptID": 3}),
        ("sentence1", "sentence2", {"idx": 0}),
        ("question", "sentence", {"idx": 0}),
        ("question1", "question2", {}),
        ("question", "passage", {}),
        ("text", "text_pair", {}),
        ("sentence_a", "sentence_b", {}),
    ],
)
@pytest.mark.parametrize("task", [Task.SEQUENCE_CLASSIFICATION, Task.MASKED_LM])
def test_pairs_are_known_by_the_names_of_their_columns(
    task: Task, first: str, second: str, others: dict[str, Any]
) -> None:
    found = choose(task, {second: LONG, **others, "label": 1, first: LONG})
    assert (found.form, found.inputs) == (Form.PAIR, (first, second))


def test_two_columns_that_the_user_names_are_a_pair_in_that_order() -> None:
    found = choose(Task.SEQUENCE_CLASSIFICATION, {"b": LONG, "a": LONG, "label": 0}, Columns(text=("a", "b")))
    assert (found.form, found.inputs, found.label) == (Form.PAIR, ("a", "b"), "label")


@pytest.mark.parametrize(
    ("row", "form", "inputs", "label"),
    [
        ({"text": LONG}, Form.TEXT, ("text",), None),
        ({"prompt": LONG, "completion": LONG}, Form.COMPLETION, ("prompt",), "completion"),
        ({"question": LONG, "answer": LONG}, Form.COMPLETION, ("question",), "answer"),
        ({"instruction": LONG, "input": "", "output": LONG}, Form.INSTRUCTION, ("instruction", "input"), "output"),
        ({"instruction": LONG, "output": LONG, "text": LONG}, Form.INSTRUCTION, ("instruction",), "output"),
        (
            {"instruction": LONG, "context": "", "response": LONG, "category": "a b c d e"},
            Form.INSTRUCTION,
            ("instruction", "context"),
            "response",
        ),
        ({"messages": TURNS, "prompt": LONG, "prompt_id": "x"}, Form.CHAT, ("messages",), None),
        ({"id": "x", "conversations": [{"from": "human", "value": "a"}]}, Form.CHAT, ("conversations",), None),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, Form.COMPLETION, ("prompt",), "completion"),
    ],
)
def test_what_language_models_are_tuned_on_is_known_by_its_columns(
    row: dict[str, Any], form: Form, inputs: tuple[str, ...], label: str | None
) -> None:
    found = choose(Task.CAUSAL_LM, row)
    assert (found.form, found.inputs, found.label) == (form, inputs, label)


def test_any_column_of_chats_can_be_named() -> None:
    assert choose(Task.CAUSAL_LM, {"dialogue": TURNS, "n": 1}, Columns(text="dialogue")).form is Form.CHAT


def test_a_label_column_of_a_language_model_is_what_follows_the_prompt() -> None:
    found = choose(Task.CAUSAL_LM, {"ask": LONG, "reply": LONG}, Columns(text="ask", label="reply"))
    assert (found.form, found.inputs, found.label) == (Form.COMPLETION, ("ask",), "reply")


@pytest.mark.parametrize(
    ("task", "row", "used", "left", "told"),
    [
        (Task.SEQUENCE_CLASSIFICATION, {"title": LONG, "text": LONG, "label": 0}, "text", "title",
         "--text-column text --text-column title for pairs"),
        (Task.CAUSAL_LM, {"text": LONG, "notes": LONG}, "text", "notes", "--text-column text --label-column notes"),
        (Task.CAUSAL_LM, {"system": LONG, "prompt": LONG, "completion": LONG}, "prompt", "system",
         "--text-column system --text-column prompt --label-column completion"),
        (Task.CAUSAL_LM, {"prompt": LONG, "chosen": LONG, "rejected": LONG}, "prompt", "chosen, rejected",
         "--text-column prompt to do without"),
        (Task.SEQ2SEQ_LM, {"document": LONG, "summary": LONG, "headline": LONG}, "document", "headline",
         "--text-column headline --text-column document --label-column summary"),
        (Task.SEQUENCE_CLASSIFICATION, {"text": CHINESE, "title": CHINESE,
         "label": 0}, "text", "title", "for pairs"),
    ],
)  # fmt: skip
def test_a_column_of_text_is_not_left_out_in_silence(
    task: Task, row: dict[str, Any], used: str, left: str, told: str
) -> None:
    with pytest.raises(RecipeError, match=f"taken from {used}, and {left} would be left out") as caught:
        choose(task, row)
    assert told in str(caught.value.hint)
    label = row.keys() & {"completion", "summary"}
    named = Columns(text=used, label=next(iter(label), None))
    assert choose(task, row, named).inputs == (used,)


def test_columns_that_tell_where_a_row_is_from_are_no_text() -> None:
    row = {
        "text": LONG, "label": 0, "id": LONG, "doc_id": LONG, "url": "https://a.example/one two three four",
        "source": "a large corpus of books", "category": "arts and culture and so on", "label_text": "very good it is",
        "title": "In short", "n": 3, "score": 0.5, "parts": [LONG], "text_parse": "( ROOT ( S ( NP ) ) )",
        "empty": None, "text_binary_parse": "( a ( b ( c d ) ) )",
    }  # fmt: skip
    assert choose(Task.SEQUENCE_CLASSIFICATION, row).inputs == ("text",)


def test_a_list_where_a_text_is_expected_is_an_error_that_says_so() -> None:
    with pytest.raises(RecipeError, match="column 'text' holds lists; expected text"):
        choose(Task.SEQUENCE_CLASSIFICATION, {"text": ["a", "b"], "label": 0})
    with pytest.raises(RecipeError, match="column 'text' holds structures; expected text"):
        choose(Task.CAUSAL_LM, {"text": {"a": "b"}})
    with pytest.raises(RecipeError, match="column 'messages' holds lists; expected turns"):
        choose(Task.CAUSAL_LM, {"messages": ["a", "b"]})


def test_chats_mean_nothing_to_other_models() -> None:
    with pytest.raises(RecipeError, match="only causal language models"):
        choose(Task.SEQUENCE_CLASSIFICATION, {"messages": TURNS, "label": 0}, Columns(text="messages"))


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        (Task.SEQUENCE_CLASSIFICATION, ("a", "a"), "one twice"),
        (Task.SEQUENCE_CLASSIFICATION, ("a", "b", "c"), "takes 2 at most"),
        (Task.TOKEN_CLASSIFICATION, ("a", "b"), "takes 1 at most"),
        (Task.SEQUENCE_CLASSIFICATION, ("a", "d"), "no column 'd'"),
    ],
)
def test_columns_that_cannot_be_given_together_are_refused(task: Task, texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        choose(task, {"a": LONG, "b": LONG, "c": LONG, "label": 0}, Columns(text=texts))


def test_where_no_label_is_found_the_likeliest_column_is_named() -> None:
    data = [{"sentence": f"{LONG} {n}", "number": n, "category": "ab"[n % 2]} for n in range(8)]
    rows = Rows(("sentence", "number", "category"), 8, data)
    layout = choose_layout(Task.SEQUENCE_CLASSIFICATION, rows, Columns())
    with pytest.raises(RecipeError, match="no label column found among sentence, number, category") as caught:
        require_label(layout, rows)
    assert caught.value.hint == "--label-column category"
