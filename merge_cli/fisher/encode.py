"""Encoding of rows as tokens or pixels, with labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merge_cli.errors import CheckpointError
from merge_cli.fisher.batching import Encode, Encoded, Unusable
from merge_cli.fisher.classes import Classes, class_of
from merge_cli.fisher.data import Rows
from merge_cli.fisher.generating import (
    chat_example,
    check_template,
    completion_example,
    instruction_prompt,
    joined,
    turns_of,
)
from merge_cli.fisher.hf_model import Loaded, longest_text, vocabulary_size
from merge_cli.fisher.images import pixels_of
from merge_cli.fisher.layouts import Form, Layout, choose_layout, require_label
from merge_cli.fisher.likelihood import IGNORED, Task
from merge_cli.fisher.settings import FisherSettings

# Share of the tokens that masked language models predict.
_MASKED = 0.15


@dataclass(frozen=True)
class Encoder:
    """Encoding of rows as examples.

    Attributes:
        encode: Does it; of a row and its number.
        layout: The columns in use.
        max_length: Tokens at which texts are cut off.
        classes: Of the model; None where it has none.
    """

    encode: Encode
    layout: Layout
    max_length: int
    classes: int | None


@dataclass(frozen=True)
class _EncoderParts:
    """Parts of an encoder: the model's tokenizer or image processor, and its configuration."""

    task: Task
    processor: Any
    config: Any
    max_length: int
    seed: int


def checked_encoder(loaded: Loaded, rows: Rows, settings: FisherSettings, *, labelled: bool) -> Encoder:
    """Return what encodes rows for a model; texts are cut off where its positions end.

    Args:
        loaded: The model.
        rows: The data, for its columns and the names of its classes.
        settings: With the columns that the user named.
        labelled: Whether true labels are needed.

    Raises:
        RecipeError: If a column that is needed cannot be found, or one with text would be left out.
        CheckpointError: If the tokenizer does not go with the data.
    """
    most = longest_text(loaded.model)
    longest = min(settings.max_length, most or settings.max_length)
    layout = choose_layout(loaded.task, rows, settings.columns)
    if labelled and not loaded.task.per_token:
        require_label(layout, rows)
    parts = _EncoderParts(loaded.task, loaded.processor, loaded.model.config, longest, settings.seed)
    encode, known = _task_encoder(parts, layout, rows), vocabulary_size(loaded.model)

    def checked(row: Mapping[str, Any], key: int) -> Encoded:
        encoded = encode(row, key)
        largest = max((int(ids.max()) for name, ids in encoded.inputs.items() if name.endswith("input_ids")), default=0)
        if known is not None and largest >= known:
            raise CheckpointError(
                f"the tokenizer gives token {largest}, the model has embeddings for {known}",
                hint="the tokenizer beside the model is another model's",
            )
        return encoded

    labels = {Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION}
    return Encoder(checked, layout, longest, loaded.model.config.num_labels if loaded.task in labels else None)


def _task_encoder(using: _EncoderParts, layout: Layout, rows: Rows) -> Encode:
    """Return the function that encodes a row of a layout."""
    form, task = layout.form, using.task
    if form is Form.CHAT or (form is Form.COMPLETION and isinstance(next(iter(rows))[layout.inputs[0]], list)):
        check_template(using.processor)
        return lambda row, key: _chat(using, row, layout)
    if task is Task.SEQ2SEQ_LM:
        return lambda row, key: _seq2seq(using, row, layout)
    if task is Task.CAUSAL_LM and layout.label is not None:
        return lambda row, key: _completion(using, row, layout)
    if task is Task.CAUSAL_LM:
        return lambda row, key: _causal(using, _texts(row, layout))
    if task is Task.MASKED_LM:
        return lambda row, key: _masked(using, _texts(row, layout), key)
    known = Classes(using.config, rows.classes.get(layout.label or "", ()))
    if form is Form.WORDS:
        return lambda row, key: _token_labels(using, row, layout, known)
    if form is Form.IMAGE:
        return lambda row, key: Encoded(
            {"pixel_values": pixels_of(using.processor, row[layout.inputs[0]])}, class_of(row, layout.label, known)
        )
    return lambda row, key: _classified(using, row, layout, known)


def _texts(row: Mapping[str, Any], layout: Layout) -> list[str]:
    """Return what a model is given, one text or a pair."""
    texts = [row[name] for name in layout.inputs]
    if not all(isinstance(text, str) for text in texts) or not "".join(texts).strip():
        raise Unusable("without text")
    return texts


def _cut(tokenize: Callable[[int], Any], max_length: int) -> tuple[Any, bool]:
    """Return what a tokenizer makes of texts when it cuts them off, and whether it has."""
    # One token more shows whether there are more.
    encoded = tokenize(max_length + 1)
    if len(encoded["input_ids"]) <= max_length:
        return encoded, False
    return tokenize(max_length), True


def _tokens(using: _EncoderParts, texts: Sequence[str], *, least: int = 1) -> tuple[dict[str, torch.Tensor], bool]:
    """Return a text or a pair as a model takes it, and whether it was cut off."""
    encoded, cut = _cut(lambda most: using.processor(*texts, truncation=True, max_length=most), using.max_length)
    if len(encoded["input_ids"]) < least:
        raise Unusable(f"with fewer than {least} tokens")
    return _inputs(encoded), cut


def _inputs(encoded: Any) -> dict[str, torch.Tensor]:
    # The tokens come first: their number is the example's length.
    names = ["input_ids", *(name for name in ("attention_mask", "token_type_ids") if name in encoded)]
    return {name: torch.tensor(encoded[name], dtype=torch.long) for name in names}


def _classified(using: _EncoderParts, row: Mapping[str, Any], layout: Layout, known: Classes) -> Encoded:
    inputs, cut = _tokens(using, _texts(row, layout))
    return Encoded(inputs, class_of(row, layout.label, known), cut)


def _causal(using: _EncoderParts, texts: Sequence[str]) -> Encoded:
    inputs, cut = _tokens(using, texts, least=2)
    return Encoded(inputs, inputs["input_ids"].clone(), cut)


def _prompt(row: Mapping[str, Any], layout: Layout) -> str:
    if layout.form is Form.INSTRUCTION:
        first, *more = (row[name] for name in layout.inputs)
        if not isinstance(first, str) or not first.strip():
            raise Unusable("without an instruction")
        return instruction_prompt(first, more[0] if more and isinstance(more[0], str) else None)
    return "\n".join(_texts(row, layout))


def _completion(using: _EncoderParts, row: Mapping[str, Any], layout: Layout) -> Encoded:
    prompt, completion = _prompt(row, layout), row[str(layout.label)]
    if not isinstance(completion, str) or not completion.strip():
        raise Unusable("without a completion")
    return completion_example(using.processor, joined(prompt, completion, layout.joint), completion, using.max_length)


def _chat(using: _EncoderParts, row: Mapping[str, Any], layout: Layout) -> Encoded:
    given = turns_of(row[layout.inputs[0]])
    if layout.label is None:
        return chat_example(using.processor, given, using.max_length)
    return chat_example(using.processor, given + turns_of(row[layout.label]), using.max_length, given=len(given))


def _masked(using: _EncoderParts, texts: Sequence[str], key: int) -> Encoded:
    """Mask a share of the tokens, at least one, chosen by the row alone."""
    inputs, cut = _tokens(using, texts)
    ids = inputs["input_ids"]
    ordinary = [place for place, token in enumerate(ids.tolist()) if token not in using.processor.all_special_ids]
    if not ordinary:
        raise Unusable("without text")
    generator = torch.Generator().manual_seed((using.seed * 1_000_003 + key) % 2**63)
    order = torch.randperm(len(ordinary), generator=generator)[: max(1, round(_MASKED * len(ordinary)))]
    chosen = torch.tensor(ordinary)[order]
    label = torch.full_like(ids, IGNORED)
    label[chosen] = ids[chosen]
    inputs["input_ids"] = ids.clone()
    inputs["input_ids"][chosen] = using.processor.mask_token_id
    return Encoded(inputs, label, cut)


def _seq2seq(using: _EncoderParts, row: Mapping[str, Any], layout: Layout) -> Encoded:
    prompt, target = _prompt(row, layout), row[str(layout.label)]
    inputs, cut = _tokens(using, [prompt])
    if not isinstance(target, str) or not target.strip():
        raise Unusable("without a target text")
    encoded, also = _cut(
        lambda most: using.processor(text_target=target, truncation=True, max_length=most), using.max_length
    )
    label = torch.tensor(encoded["input_ids"], dtype=torch.long)
    if using.config.decoder_start_token_id is None:
        raise CheckpointError("the model does not say which token starts a decoded text: decoder_start_token_id")
    start = torch.tensor([using.config.decoder_start_token_id])
    shifted = torch.cat([start, label[:-1]])
    decoded = {"decoder_input_ids": shifted, "decoder_attention_mask": torch.ones_like(shifted)}
    return Encoded({**inputs, **decoded}, label, cut or also)


def _token_labels(using: _EncoderParts, row: Mapping[str, Any], layout: Layout, known: Classes) -> Encoded:
    """Give each word's label to its first token."""
    words, tags = row[layout.inputs[0]], row[str(layout.label)]
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
        raise Unusable("without one label for each word")
    encoded, cut = _cut(
        lambda most: using.processor(words, is_split_into_words=True, truncation=True, max_length=most),
        using.max_length,
    )
    before: list[int | None] = [None, *encoded.word_ids()]
    labels = [
        IGNORED if word is None or word == before[place] or tags[word] == IGNORED else known.index(tags[word])
        for place, word in enumerate(encoded.word_ids())
    ]
    return Encoded(_inputs(encoded), torch.tensor(labels), cut)
