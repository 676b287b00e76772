"""Layouts of data: the columns that make an example, recognised by name and content.

A column is not left out in silence: where one that nobody named holds text and is not used, that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from merge_cli.errors import RecipeError
from merge_cli.fisher.data import Rows, find_column
from merge_cli.fisher.likelihood import Task
from merge_cli.fisher.settings import Columns
from merge_cli.fisher.texts import holds_text
from merge_cli.text import listed

# Rows that tell what a column holds.
_LOOKED_AT = 50
_TEXT = ("text", "sentence", "content", "document", "review", "question", "prompt", "input", "tokens", "words")
_LABEL = ("label", "labels", "coarse_label", "fine_label", "ner_tags", "pos_tags", "tags")
_TARGET = ("target", "summary", "answer", "output", "completion", "response", "label", "labels")
_IMAGE = ("image", "img", "pixel_values")
_PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"),
    ("question1", "question2"), ("question", "sentence"), ("question", "passage"), ("text", "text_pair"),
    ("text1", "text2"), ("text_a", "text_b"),
)  # fmt: skip


class Form(StrEnum):
    """Form of a row's example."""

    TEXT = "text"
    PAIR = "pair"
    WORDS = "words"
    COMPLETION = "completion"
    INSTRUCTION = "instruction"
    CHAT = "chat"
    IMAGE = "image"


@dataclass(frozen=True)
class Layout:
    """Encoding of rows as examples.

    Attributes:
        form: What an example is.
        inputs: Columns of what the model is given.
        label: Column of a label, or of the text that is to follow; None where there is none.
        joint: Stands between a prompt and its completion where neither brings white space.
    """

    form: Form
    inputs: tuple[str, ...]
    label: str | None = None
    joint: str = "\n"


@dataclass(frozen=True)
class _Known:
    """A layout of data that text is generated from.

    Attributes:
        form: What an example is.
        inputs: Columns of what the model is given; all must be there.
        label: Column of what is to follow; None where the inputs hold it.
        may: A further input, where it is there.
        repeats: Columns that hold the same again.
        joint: Between a prompt and its completion.
    """

    form: Form
    inputs: tuple[str, ...]
    label: str | None = None
    may: str | None = None
    repeats: tuple[str, ...] = ()
    joint: str = "\n"


# The first whose columns are all there counts. TRL joins prompts and completions as they are.
_GENERATING = (
    _Known(Form.CHAT, ("messages",), repeats=("prompt", "text")),
    _Known(Form.CHAT, ("conversations",), repeats=("prompt", "text")),
    _Known(Form.CHAT, ("conversation",), repeats=("prompt", "text")),
    _Known(Form.INSTRUCTION, ("instruction",), "output", may="input", repeats=("text",)),
    _Known(Form.INSTRUCTION, ("instruction",), "response", may="context", repeats=("text",)),
    _Known(Form.COMPLETION, ("prompt",), "completion", joint=""),
    _Known(Form.COMPLETION, ("prompt",), "response"),
    _Known(Form.COMPLETION, ("question",), "answer"),
    _Known(Form.COMPLETION, ("question",), "response"),
    _Known(Form.COMPLETION, ("query",), "response"),
    _Known(Form.COMPLETION, ("input",), "output"),
)


def choose_layout(task: Task, rows: Rows, columns: Columns) -> Layout:
    """Tell from the columns of the data, and what the user named, how its rows become examples.

    Raises:
        RecipeError: If a column that is needed cannot be found or holds something else, or one with text is left out.
    """
    available = rows.columns
    if task is Task.IMAGE_CLASSIFICATION:
        image = find_column(available, columns.image, _IMAGE, what="image", required=True)
        label = find_column(available, columns.label, _LABEL, what="label", required=False)
        return Layout(Form.IMAGE, (str(image),), label)
    seen = list(islice(rows, _LOOKED_AT))
    for name in columns.texts:
        find_column(available, name, (), what="text", required=True)
    generating = task in {Task.CAUSAL_LM, Task.SEQ2SEQ_LM}
    _check_number(task, columns.texts, generating=generating)
    layout, repeats = (
        _generating(task, available, columns, seen) if generating else (_telling(task, available, columns), ())
    )
    _check_held(task, layout, seen)
    if not columns.texts:
        _refuse_left_out(layout, repeats, available, seen, generating=generating)
    return layout


def _check_number(task: Task, given: Sequence[str], *, generating: bool) -> None:
    if len(set(given)) < len(given):
        raise RecipeError(f"--text-column names {listed(given)}: one twice; a pair is made of two columns")
    most = 1 if task is Task.TOKEN_CLASSIFICATION else 2
    if len(given) > most and not generating:
        raise RecipeError(f"--text-column names {listed(given)}; {task} takes {most} at most")


def _telling(task: Task, available: Sequence[str], columns: Columns) -> Layout:
    """Choose the layout of data that a model tells something of: its class, that of each word, or hidden words."""
    inputs = columns.texts
    if not inputs and task is not Task.TOKEN_CLASSIFICATION:
        inputs = next((pair for pair in _PAIRS if set(pair) <= set(available)), ())
    inputs = inputs or (str(find_column(available, None, _TEXT, what="text", required=True)),)
    label = None
    if task is not Task.MASKED_LM:
        required = task is Task.TOKEN_CLASSIFICATION
        label = find_column(available, columns.label, _LABEL, what="label", required=required)
    if task is Task.TOKEN_CLASSIFICATION:
        return Layout(Form.WORDS, inputs[:1], label)
    return Layout(Form.PAIR if len(inputs) > 1 else Form.TEXT, inputs, label)


def _generating(
    task: Task, available: Sequence[str], columns: Columns, seen: Sequence[Mapping[str, Any]]
) -> tuple[Layout, tuple[str, ...]]:
    """Choose the layout of data that text is generated from, and tell which columns repeat what is used."""
    given = columns.texts
    if given:
        if len(given) == 1 and _is_chat(given[0], seen) and columns.label is None:
            return Layout(Form.CHAT, given), ()
        usual = _TARGET if task is Task.SEQ2SEQ_LM else ()
        label = find_column(available, columns.label, usual, what="label", required=task is Task.SEQ2SEQ_LM)
        plain = Form.PAIR if len(given) > 1 else Form.TEXT
        return Layout(Form.COMPLETION if label else plain, given, label), ()
    for known in _GENERATING if columns.label is None else ():
        if {*known.inputs, *([known.label] if known.label else ())} <= set(available):
            more = (known.may,) if known.may in available else ()
            return Layout(known.form, (*known.inputs, *more), known.label, known.joint), known.repeats
    usual = _TARGET if task is Task.SEQ2SEQ_LM else ()
    label = find_column(available, columns.label, usual, what="label", required=task is Task.SEQ2SEQ_LM)
    others = [name for name in available if name != label]
    text = str(find_column(others, None, _TEXT, what="text", required=True))
    return Layout(Form.COMPLETION if label else Form.TEXT, (text,), label), ()


def require_label(layout: Layout, rows: Rows) -> None:
    """Refuse data in which no column of labels was found, with the likeliest one.

    Raises:
        RecipeError: If there are other columns than those in use; without, no row has a label, which is told later.
    """
    others = [name for name in rows.columns if name not in layout.inputs]
    if layout.label is not None or not others:
        return
    seen = list(islice(rows, _LOOKED_AT))
    likely = min(others, key=lambda name: len({str(row[name]) for row in seen}))
    raise RecipeError(f"no label column found among {listed(rows.columns)}", hint=f"--label-column {likely}")


def _is_chat(column: str, seen: Sequence[Mapping[str, Any]]) -> bool:
    values = [row[column] for row in seen if row[column]]
    return bool(values) and all(
        isinstance(value, list) and isinstance(value[0], Mapping) and {"role", "from"} & value[0].keys()
        for value in values
    )


def _check_held(task: Task, layout: Layout, seen: Sequence[Mapping[str, Any]]) -> None:
    """Refuse columns that hold lists where text is expected, and chats where they mean nothing."""
    generated = (layout.label,) if layout.label and layout.form in {Form.COMPLETION, Form.INSTRUCTION} else ()
    for name in (*layout.inputs, *generated):
        chat = _is_chat(name, seen)
        if chat and task is not Task.CAUSAL_LM:
            raise RecipeError(f"column '{name}' holds chats, which only causal language models are measured on")
        if chat and layout.form in {Form.CHAT, Form.COMPLETION}:
            continue
        found = {type(row[name]) for row in seen if row[name] is not None} & {list, dict}
        if layout.form is Form.WORDS or not found:
            continue
        expected = "turns with a role and content, or from and value" if layout.form is Form.CHAT else "text"
        what = "lists" if list in found else "structures"
        raise RecipeError(
            f"column '{name}' holds {what}; expected {expected}", hint="name another one with --text-column"
        )


def _refuse_left_out(
    layout: Layout, repeats: Sequence[str], available: Sequence[str], seen: Sequence[Mapping[str, Any]], *,
    generating: bool,
) -> None:  # fmt: skip
    used = {*layout.inputs, layout.label}
    left = [
        name
        for name in available
        if name not in used and name not in repeats and holds_text(name, layout.inputs, [row[name] for row in seen])
    ]
    if not left:
        return
    first, other = layout.inputs[0], left[0]
    told = f"--text-column {first} to do without"
    if layout.form in {Form.TEXT, Form.PAIR} and len(layout.inputs) == 1:
        told += f", or --text-column {first} --text-column {other} for pairs"
        if generating:
            told += f", or --text-column {first} --label-column {other} for a prompt and what follows it"
    elif layout.label is not None and generating:
        told = f"--text-column {first} --label-column {layout.label} to do without"
        told += f", or --text-column {other} --text-column {first} --label-column {layout.label} to begin with it"
    raise RecipeError(
        f"the text is taken from {listed(layout.inputs)}, and {listed(left)} would be left out, "
        f"which {'hold' if len(left) > 1 else 'holds'} text too",
        hint=told,
    )
