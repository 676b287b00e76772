"""Comparison of the models' vocabularies with that of the output's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Checkpoint
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.side_files import side_file_donor

_TOKENIZERS = (
    "tokenizer.json", "vocab.json", "added_tokens.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
# Larger files than any tokenizer are compared by their bytes alone.
_MOST_PARSED = 64 * 2**20
_PIECE = 2**20

# A token and its number.
_Tokens = frozenset[tuple[str, int]]


def vocabulary_warnings(inputs: Inputs) -> Iterator[str]:
    """Name every model whose vocabulary differs, by the size in ``config.json`` or by the tokenizer's files.

    Equal shapes of the embeddings say little: many are padded, and a row then means another token in each model.
    Tokenizer files of other bytes and the same tokens, as another version of a library writes them, are no difference.

    Raises:
        CheckpointError: If a tokenizer's file cannot be read.
    """
    donor = side_file_donor(inputs)
    held: dict[Path, _Tokens | None] = {}
    for model in dict.fromkeys(each.label for each in inputs.models):
        checkpoint = next(each for each in inputs.models if each.label == model)
        found = list(_differences(checkpoint, donor, held)) if checkpoint.root != donor.root else []
        if found:
            yield (
                f"the vocabulary of {model} differs from that of {donor.label}, whose tokenizer the output gets: "
                f"{'; '.join(found)}; a row of the embeddings may mean another token in each"
            )


def _differences(model: Checkpoint, donor: Checkpoint, held: dict[Path, _Tokens | None]) -> Iterator[str]:
    sizes = _vocabulary_size(model.config), _vocabulary_size(donor.config)
    if None not in sizes and sizes[0] != sizes[1]:
        yield f"vocab_size is {sizes[0]} and {sizes[1]}"
    for name in _TOKENIZERS:
        own, others = model.root / name, donor.root / name
        if not (own.is_file() and others.is_file()) or _same_bytes(own, others):
            continue
        tokens = _tokens(own)
        if others not in held:
            held[others] = _tokens(others)
        wanted = held[others]
        if tokens is None or wanted is None:
            yield f"{name} differs"
        elif tokens != wanted:
            more, fewer = len(tokens - wanted), len(wanted - tokens)
            yield f"in {name} {more} of {len(tokens)} tokens are others, and {fewer} of {len(wanted)} are missing"


def _vocabulary_size(config: Any) -> int | None:
    """Return ``vocab_size``, of the part for text in a model of several parts."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def _same_bytes(one: Path, other: Path) -> bool:
    with read_errors(one), one.open("rb") as first, read_errors(other), other.open("rb") as second:
        if one.stat().st_size != other.stat().st_size:
            return False
        while piece := first.read(_PIECE):
            if piece != second.read(_PIECE):
                return False
    return True


def _tokens(path: Path) -> _Tokens | None:
    """Return the tokens of a tokenizer's JSON file with their numbers, None where it is not understood."""
    with read_errors(path):
        if path.suffix != ".json" or path.stat().st_size > _MOST_PARSED:
            return None
        raw = path.read_bytes()
    try:
        content = json.loads(raw)
        if path.name != "tokenizer.json":
            return frozenset((str(token), int(number)) for token, number in content.items())
        vocabulary = content["model"]["vocab"]
        added = {(str(each["content"]), int(each["id"])) for each in content.get("added_tokens") or ()}
        if isinstance(vocabulary, dict):
            return frozenset(added | {(str(token), int(number)) for token, number in vocabulary.items()})
        return frozenset(added | {(str(token), number) for number, (token, _) in enumerate(vocabulary)})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
