"""Checkpoint folders with a tokenizer, and files of rows, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[MASK]", "a", "b", "c", "d", "e", "f", "g", "h"]


def save_model(folder: Path, model_class: str, config_class: str, **settings: Any) -> Path:
    """Save a model with random weights, of which the words are single letters."""
    torch.manual_seed(0)
    model: Any = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    ).save_pretrained(folder)
    return folder


def save_bert(folder: Path, model_class: str = "BertForSequenceClassification", **settings: Any) -> Path:
    return save_model(
        folder, model_class, "BertConfig", vocab_size=len(WORDS), hidden_size=16, intermediate_size=24,
        num_attention_heads=4, max_position_embeddings=16, **{"num_hidden_layers": 2, "num_labels": 3, **settings},
    )  # fmt: skip


def save_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def letters(count: int) -> list[dict[str, Any]]:
    """Rows of texts of two to six letters, with one of three labels."""
    return [
        {"text": " ".join(WORDS[3 + (row * 5 + place) % 8] for place in range(2 + row % 5)), "label": row % 3}
        for row in range(count)
    ]
