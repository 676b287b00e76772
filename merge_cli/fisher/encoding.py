"""From rows to what a model takes, tokens or pixels, and labels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge_cli.errors import CheckpointError
from merge_cli.fisher.data import Rows, find_column
from merge_cli.fisher.examples import Encode, Unusable
from merge_cli.fisher.libraries import require
from merge_cli.fisher.losses import IGNORED, Task
from merge_cli.fisher.modelling import Loaded, longest_text, vocabulary_size
from merge_cli.fisher.settings import Columns, FisherSettings

_TEXT = ("text", "sentence", "content", "document", "review", "question", "prompt", "input", "tokens", "words")
_LABEL = ("label", "labels", "coarse_label", "fine_label", "ner_tags", "pos_tags", "tags")
_TARGET = ("target", "summary", "answer", "output", "completion", "response", "label", "labels")
_IMAGE = ("image", "img", "pixel_values")
# Share of the tokens that masked language models predict.
_MASKED = 0.15


def encoder_of(loaded: Loaded, rows: Rows, settings: FisherSettings) -> Encode:
    """Return the function that encodes rows for a model; texts are cut off where its positions end.

    Raises:
        RecipeError: If a column that is needed cannot be found.
    """
    most = longest_text(loaded.model)
    encode = make_encoder(
        loaded.task, loaded.tools, loaded.model.config, settings.columns, rows,
        max_length=min(settings.max_length, most or settings.max_length), seed=settings.seed,
    )  # fmt: skip
    known = vocabulary_size(loaded.model)

    def checked(row: Mapping[str, Any], key: int) -> tuple[dict[str, Tensor], Tensor]:
        inputs, label = encode(row, key)
        largest = max((int(ids.max()) for name, ids in inputs.items() if name.endswith("input_ids")), default=0)
        if known is not None and largest >= known:
            raise CheckpointError(
                f"the tokenizer gives token {largest}, the model has embeddings for {known}",
                hint="the tokenizer beside the model is another model's",
            )
        return inputs, label

    return checked


def make_encoder(
    task: Task, tools: Any, config: Any, columns: Columns, rows: Rows, *, max_length: int, seed: int
) -> Encode:
    """Return the function that encodes a row for a task.

    Args:
        task: What the model predicts.
        tools: The model's tokenizer or image processor.
        config: The model's configuration, for its labels.
        columns: As named by the user.
        rows: The data, for its columns and the names of its classes.
        max_length: Tokens at which texts are cut off.
        seed: Of the choice of masked tokens.

    Raises:
        RecipeError: If a column that is needed cannot be found.
    """
    available = rows.columns
    if task is Task.IMAGE_CLASSIFICATION:
        image = find_column(available, columns.image, _IMAGE, what="image", required=True)
        label = find_column(available, columns.label, _LABEL, what="label", required=False)
        known = _Classes(config, rows.classes.get(label or "", ()))
        return lambda row, key: ({"pixel_values": _pixels(tools, row[str(image)])}, _class(row, label, known))
    text = find_column(available, columns.text, _TEXT, what="text", required=True)
    assert text is not None
    if task is Task.SEQ2SEQ_LM:
        target = find_column(available, columns.label, _TARGET, what="label", required=True)
        return lambda row, key: _seq2seq(tools, config, row, text, str(target), max_length)
    if task is Task.SEQUENCE_CLASSIFICATION:
        label = find_column(available, columns.label, _LABEL, what="label", required=False)
        known = _Classes(config, rows.classes.get(label or "", ()))
        return lambda row, key: (_tokens(tools, row[text], max_length), _class(row, label, known))
    if task is Task.TOKEN_CLASSIFICATION:
        label = find_column(available, columns.label, _LABEL, what="label", required=True)
        known = _Classes(config, rows.classes.get(str(label), ()))
        return lambda row, key: _token_labels(tools, row, text, str(label), known, max_length)
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
    if config.decoder_start_token_id is None:
        raise CheckpointError("the model does not say which token starts a decoded text: decoder_start_token_id")
    start = torch.tensor([config.decoder_start_token_id])
    shifted = torch.cat([start, label[:-1]])
    return {**inputs, "decoder_input_ids": shifted, "decoder_attention_mask": torch.ones_like(shifted)}, label


def _token_labels(
    tokenizer: Any, row: Mapping[str, Any], text: str, label: str, known: _Classes, max_length: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Give each word's label to its first token."""
    words, tags = row[text], row[label]
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
        raise Unusable("without one label for each word")
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    before: list[int | None] = [None, *encoded.word_ids()]
    labels = [
        IGNORED if word is None or word == before[place] or tags[word] == IGNORED else known.index(tags[word])
        for place, word in enumerate(encoded.word_ids())
    ]
    names = ["input_ids", *(name for name in ("attention_mask", "token_type_ids") if name in encoded)]
    return {name: torch.tensor(encoded[name], dtype=torch.long) for name in names}, torch.tensor(labels)


class _Classes:
    """The model's classes, and which of them a label in the data means.

    Args:
        config: The model's configuration.
        names: What the data calls its numbers; they count where the model knows one of them, since the two may number
            the same classes in different orders.
    """

    def __init__(self, config: Any, names: Sequence[str]) -> None:
        self._count = int(config.num_labels)
        self._by_name: Mapping[str, int] = config.label2id or {}
        self._names = names if any(name in self._by_name for name in names) else ()

    def index(self, label: Any) -> int:
        """Return the model's number of a label; one that is none of them makes the row unusable."""
        if self._names and isinstance(label, int) and 0 <= label < len(self._names):
            label = self._names[label]
        if isinstance(label, str):
            label = self._by_name.get(label, int(label) if label.isdigit() and not self._names else -1)
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if not isinstance(label, int) or not 0 <= label < self._count:
            raise Unusable(f"with a label that is none of the model's {self._count}")
        return int(label)


def _class(row: Mapping[str, Any], column: str | None, known: _Classes) -> Tensor:
    if column is None or row[column] is None or row[column] == -1:
        return torch.tensor(IGNORED)
    return torch.tensor(known.index(row[column]))


def _pixels(processor: Any, image: Any) -> Tensor:
    if image is None:
        raise Unusable("without an image")
    if isinstance(image, list):
        return torch.tensor(image, dtype=torch.float32)
    if processor is None:
        raise CheckpointError(
            "the model has no image processor, so its size and scale of images are not known",
            hint="copy preprocessor_config.json of its base beside it",
        )
    made: Tensor = processor(images=_opened(image), return_tensors="pt")["pixel_values"][0]
    return made


def _opened(image: Any) -> Any:
    """Decode an image as the data holds it, a path or bytes."""
    library = require("PIL.Image", "reading images")
    try:
        if isinstance(image, Mapping):
            content = image.get("bytes")
            image = library.open(io.BytesIO(content) if content is not None else image["path"])
        return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise Unusable("with an image that cannot be read") from error
