"""From rows to what a model takes, tokens or pixels, and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merge_cli.fisher.data import find_column
from merge_cli.fisher.examples import Encode, Unusable
from merge_cli.fisher.losses import IGNORED, Task

_TEXT = ("text", "sentence", "content", "document", "review", "question", "prompt", "input", "tokens", "words")
_LABEL = ("label", "labels", "coarse_label", "fine_label", "ner_tags", "pos_tags", "tags")
_TARGET = ("target", "summary", "answer", "output", "completion", "response", "label", "labels")
_IMAGE = ("image", "img", "pixel_values")
# Share of the tokens that masked language models predict.
_MASKED = 0.15


@dataclass(frozen=True)
class Columns:
    """The columns that the user named, None to look for the usual ones."""

    text: str | None = None
    label: str | None = None
    image: str | None = None


def make_encoder(
    task: Task, tools: Any, config: Any, columns: Columns, available: Sequence[str], *, max_length: int, seed: int
) -> Encode:
    """Return the function that encodes a row for a task.

    Args:
        task: What the model predicts.
        tools: The model's tokenizer or image processor.
        config: The model's configuration, for its labels.
        columns: As named by the user.
        available: The columns that the data has.
        max_length: Tokens at which texts are cut off.
        seed: Of the choice of masked tokens.

    Raises:
        RecipeError: If a column that is needed cannot be found.
    """
    if task is Task.IMAGE_CLASSIFICATION:
        image = find_column(available, columns.image, _IMAGE, what="image", required=True)
        label = find_column(available, columns.label, _LABEL, what="label", required=False)
        return lambda row, key: ({"pixel_values": _pixels(tools, row[str(image)])}, _class(row, label, config))
    text = find_column(available, columns.text, _TEXT, what="text", required=True)
    assert text is not None
    if task is Task.SEQ2SEQ_LM:
        target = find_column(available, columns.label, _TARGET, what="label", required=True)
        return lambda row, key: _seq2seq(tools, config, row, text, str(target), max_length)
    if task is Task.SEQUENCE_CLASSIFICATION:
        label = find_column(available, columns.label, _LABEL, what="label", required=False)
        return lambda row, key: (_tokens(tools, row[text], max_length), _class(row, label, config))
    if task is Task.TOKEN_CLASSIFICATION:
        label = find_column(available, columns.label, _LABEL, what="label", required=True)
        return lambda row, key: _token_labels(tools, row, text, str(label), config, max_length)
    if task is Task.MASKED_LM:
        return lambda row, key: _masked(tools, row[text], key, seed, max_length)
    return lambda row, key: _causal(tools, row[text], max_length)


def _tokens(tokenizer: Any, text: Any, max_length: int, *, least: int = 1) -> dict[str, Tensor]:
    if not isinstance(text, str) or not text.strip():
        raise Unusable("without text")
    encoded = tokenizer(text, truncation=True, max_length=max_length)
    if len(encoded["input_ids"]) < least:
        raise Unusable(f"with fewer than {least} tokens")
    # The tokens come first: their number is the example's length.
    names = ["input_ids", *(name for name in ("attention_mask", "token_type_ids") if name in encoded)]
    return {name: torch.tensor(encoded[name], dtype=torch.long) for name in names}


def _causal(tokenizer: Any, text: Any, max_length: int) -> tuple[dict[str, Tensor], Tensor]:
    inputs = _tokens(tokenizer, text, max_length, least=2)
    return inputs, inputs["input_ids"].clone()


def _masked(tokenizer: Any, text: Any, key: int, seed: int, max_length: int) -> tuple[dict[str, Tensor], Tensor]:
    """Mask a share of the tokens, at least one, chosen by the row alone."""
    inputs = _tokens(tokenizer, text, max_length)
    ids = inputs["input_ids"]
    ordinary = [place for place, token in enumerate(ids.tolist()) if token not in tokenizer.all_special_ids]
    if not ordinary:
        raise Unusable("without text")
    generator = torch.Generator().manual_seed((seed * 1_000_003 + key) % 2**63)
    order = torch.randperm(len(ordinary), generator=generator)[: max(1, round(_MASKED * len(ordinary)))]
    chosen = torch.tensor(ordinary)[order]
    label = torch.full_like(ids, IGNORED)
    label[chosen] = ids[chosen]
    inputs["input_ids"] = ids.clone()
    inputs["input_ids"][chosen] = tokenizer.mask_token_id
    return inputs, label


def _seq2seq(
    tokenizer: Any, config: Any, row: Mapping[str, Any], text: str, target: str, max_length: int
) -> tuple[dict[str, Tensor], Tensor]:
    inputs = _tokens(tokenizer, row[text], max_length)
    if not isinstance(row[target], str) or not row[target].strip():
        raise Unusable("without a target text")
    encoded = tokenizer(text_target=row[target], truncation=True, max_length=max_length)["input_ids"]
    label = torch.tensor(encoded, dtype=torch.long)
    start = torch.tensor([config.decoder_start_token_id])
    shifted = torch.cat([start, label[:-1]])
    return {**inputs, "decoder_input_ids": shifted, "decoder_attention_mask": torch.ones_like(shifted)}, label


def _token_labels(
    tokenizer: Any, row: Mapping[str, Any], text: str, label: str, config: Any, max_length: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Give each word's label to its first token."""
    words, tags = row[text], row[label]
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
        raise Unusable("without one label for each word")
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    before: list[int | None] = [None, *encoded.word_ids()]
    labels = [
        IGNORED if word is None or word == before[place] else _class_index(tags[word], config)
        for place, word in enumerate(encoded.word_ids())
    ]
    names = ["input_ids", *(name for name in ("attention_mask", "token_type_ids") if name in encoded)]
    return {name: torch.tensor(encoded[name], dtype=torch.long) for name in names}, torch.tensor(labels)


def _class(row: Mapping[str, Any], column: str | None, config: Any) -> Tensor:
    if column is None or row[column] is None or row[column] == -1:
        return torch.tensor(IGNORED)
    return torch.tensor(_class_index(row[column], config))


def _class_index(label: Any, config: Any) -> int:
    if isinstance(label, str):
        known = config.label2id or {}
        if label in known:
            return int(known[label])
        label = int(label) if label.isdigit() else -1
    if not isinstance(label, int) or not 0 <= label < config.num_labels:
        raise Unusable(f"with a label that is none of the model's {config.num_labels}")
    return label


def _pixels(processor: Any, image: Any) -> Tensor:
    if image is None:
        raise Unusable("without an image")
    if isinstance(image, list):
        return torch.tensor(image, dtype=torch.float32)
    made: Tensor = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    return made
