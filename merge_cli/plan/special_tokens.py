"""Comparison of the models' special tokens, as the output gets one model's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Checkpoint, Files
from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.errors import CheckpointError

_IDS = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
_TOKENS = ("bos_token", "eos_token", "cls_token", "sep_token", "mask_token")
_PADDING = ("pad_token_id", "pad_token")
_FILES = {"config.json": _IDS, "generation_config.json": _IDS, "tokenizer_config.json": _TOKENS}


def special_token_warnings(models: Sequence[Checkpoint], donor: Checkpoint) -> Iterator[str]:
    """Yield a sentence for each model whose special tokens are others than those of the donor, with both values.

    What only one of the two gives is not compared.
    """
    for label, found in _differences(models, donor, _FILES):
        yield f"the special tokens of {label} are not those of {donor.label}, whose files the output gets: {found}"


def special_token_notes(models: Sequence[Checkpoint], donor: Checkpoint) -> Iterator[str]:
    """Yield the same for what texts are filled up with, of which hardly a model takes notice."""
    for label, found in _differences(models, donor, dict.fromkeys(_FILES, _PADDING)):
        yield f"the padding of {label} is not that of {donor.label}, whose files the output gets: {found}"


def _differences(
    models: Sequence[Checkpoint], donor: Checkpoint, wanted: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    given = {file: _settings(donor, file) for file in wanted}
    for model in {each.root: each for each in models if each.root != donor.root}.values():
        found = [
            f"{key} in {file} is {_shown(own[key])} and {_shown(given[file][key])}"
            for file, keys in wanted.items()
            for own in [_settings(model, file)]
            for key in keys
            if own.get(key) is not None
            and given[file].get(key) is not None
            and _plain(own[key]) != _plain(given[file][key])
        ]
        if found:
            yield model.label, "; ".join(found)


def _settings(checkpoint: Checkpoint, file: str) -> Mapping[str, Any]:
    if file == "config.json":
        return checkpoint.config
    path: Path = checkpoint.root / file
    with read_errors(path):
        if not path.is_file():
            return {}
    try:
        return read_json(path, Files())
    except CheckpointError:
        return {}


def _plain(value: Any) -> Any:
    """Return a token as its text, and ids in any order; one id is a list of one."""
    if isinstance(value, dict):
        return value.get("content")
    return sorted(map(str, value)) if isinstance(value, list) else [str(value)] if isinstance(value, int) else value


def _shown(value: Any) -> str:
    text = json.dumps(value.get("content") if isinstance(value, dict) else value, ensure_ascii=False, default=str)
    return text[:100]
