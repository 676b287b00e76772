"""Vocabularies that differ though the tensors fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge_cli.plan import build_plan
from tests.checkpoints import LLAMA, recipe_over, write_checkpoint

WORDS = {"a": 0, "b": 1, "c": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a base and a model of one vocabulary."""
    for i, name in enumerate(["base", "one"]):
        config = {**LLAMA, "vocab_size": 4}
        write_checkpoint(tmp_path / name, {"embed_tokens.weight": [[1.0 + i] * 2] * 4}, config=config)
        write_tokens(tmp_path / name, WORDS)
    return tmp_path


def write_tokens(folder: Path, vocabulary: Any, added: Mapping[str, int] | None = None, **more: Any) -> None:
    extra = [{"content": token, "id": number} for token, number in (added or {}).items()]
    content = {"model": {"vocab": vocabulary}, "added_tokens": extra, **more}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def warned(folder: Path) -> tuple[str, ...]:
    models = [{"model": "one", "parameters": {"weight": 1}}]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    return build_plan(recipe_over(folder, content)).warnings


def test_one_vocabulary_is_no_reason_to_warn(folder: Path) -> None:
    assert warned(folder) == ()


def test_the_same_tokens_in_other_bytes_are_no_difference(folder: Path) -> None:
    write_tokens(folder / "one", dict(reversed(WORDS.items())), truncation={"max_length": 512})
    assert warned(folder) == ()


def test_sizes_that_differ_though_the_embeddings_fit_are_told_of(folder: Path) -> None:
    (folder / "one" / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 3}))
    assert warned(folder) == (
        "the vocabulary of one differs from that of base, whose tokenizer the output gets: vocab_size is 3 and 4; a "
        "row of the embeddings may mean another token in each",
    )


def test_the_size_of_a_part_for_text_counts(folder: Path) -> None:
    (folder / "one" / "config.json").write_text(json.dumps({**LLAMA, "text_config": {"vocab_size": 3}}))
    assert "vocab_size is 3 and 4" in warned(folder)[0]


def test_other_tokens_are_counted(folder: Path) -> None:
    write_tokens(folder / "one", {"a": 0, "b": 1, "x": 2})
    assert "in tokenizer.json 1 of 3 tokens are others, and 1 of 3 are missing" in warned(folder)[0]


def test_tokens_in_another_order_are_others(folder: Path) -> None:
    write_tokens(folder / "one", {"a": 1, "b": 0, "c": 2})
    assert "in tokenizer.json 2 of 3 tokens are others, and 2 of 3 are missing" in warned(folder)[0]


def test_an_added_token_is_a_difference(folder: Path) -> None:
    write_tokens(folder / "one", WORDS, added={"<pad>": 3})
    assert "in tokenizer.json 1 of 4 tokens are others, and 0 of 3 are missing" in warned(folder)[0]


def test_a_vocabulary_of_pieces_with_scores_is_counted_too(folder: Path) -> None:
    write_tokens(folder / "base", [["a", -1.0], ["b", -2.0]])
    write_tokens(folder / "one", [["a", -1.5], ["x", -2.0]])
    assert "in tokenizer.json 1 of 2 tokens are others, and 1 of 2 are missing" in warned(folder)[0]


def test_other_files_of_tokenizers_count_by_their_tokens_or_their_bytes(folder: Path) -> None:
    for name in ("base", "one"):
        (folder / name / "vocab.json").write_text(json.dumps({"a": 0, name: 1}))
        (folder / name / "tokenizer.model").write_bytes(name.encode())
    (warning,) = warned(folder)
    assert "in vocab.json 1 of 2 tokens are others, and 1 of 2 are missing; tokenizer.model differs" in warning


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": 3}', '{"model": {"vocab": {"a": "x"}}}', "[" * 9999])
def test_a_file_that_is_not_understood_differs_and_breaks_nothing(folder: Path, content: str) -> None:
    (folder / "one" / "tokenizer.json").write_text(content)
    assert "tokenizer.json differs" in warned(folder)[0]


def test_a_file_that_only_one_has_is_not_compared(folder: Path) -> None:
    (folder / "one" / "tokenizer.json").unlink()
    assert warned(folder) == ()
