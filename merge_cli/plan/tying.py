"""Output heads that are the embedding itself, in some checkpoints or in all.

What ties them is the configuration: a checkpoint then holds the embedding alone, or both with the same numbers, or, as
careless training leaves it, a head of its own that readers of the configuration pass over.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from merge_cli.checkpoint import Checkpoint, Files, Reader
from merge_cli.plan.inputs import Inputs
from merge_cli.recipe import Exclusion

_HEADS = ("lm_head.weight", "embed_out.weight", "predictions.decoder.weight", "lm_head.decoder.weight")
_EMBEDDINGS = (
    "embed_tokens.weight", "shared.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
    "tok_embeddings.weight",
)  # fmt: skip
# Classes that have a head: a checkpoint of one without a tensor for it ties it.
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
_KEY = "tie_word_embeddings"
_BLOCK = 2**22


def with_ties(inputs: Inputs, exclude: Sequence[Exclusion], files: Files) -> Inputs:
    """Return the inputs with a tied head known as the embedding, under both names.

    Where only some hold a head, the embedding stands in for it in the others. Where all are tied, there is one tensor,
    also if it is stored twice with the same numbers; only then are numbers read here.

    Raises:
        CheckpointError: If a checkpoint that must be looked at cannot be read.
    """
    known = {each.root: each for each in (*inputs.models, *([inputs.base] if inputs.base else []))}
    for name in separate_heads(name for each in known.values() for name in each.tensors):
        tied = {root: _tied(each, name) for root, each in known.items()}
        folded = all(tied.values()) and not any(fnmatch.fnmatchcase(name, each.pattern) for each in exclude)
        held = [root for root, each in known.items() if name in each.tensors]
        folded = folded and all(_equal(known[root], name, tied[root], files) for root in held)
        for root, embedding in tied.items():
            if embedding is not None and (folded or root not in held):
                known[root] = _as_one(known[root], name, embedding)
    base = known[inputs.base.root] if inputs.base is not None else None
    return replace(inputs, models=tuple(known[each.root] for each in inputs.models), base=base)


def separate_heads(names: Iterable[str]) -> list[str]:
    """Return which tensors are output heads, each once."""
    return [name for name in dict.fromkeys(names) if name.endswith(_HEADS)]


def config_of_ties(
    config: Mapping[str, Any], donor: Checkpoint, reference: Checkpoint, names: Collection[str]
) -> dict[str, Any]:
    """Return a configuration that says that the head is the embedding exactly where it is in the output.

    Args:
        config: The output's configuration, taken from the donor.
        donor: The checkpoint that it comes from.
        reference: The checkpoint whose tensors the output has.
        names: Names of the output's tensors.
    """
    heads = separate_heads(names)
    if any(name in donor.tied for name in names) or (heads and _says(config) is True):
        # The donor ties this tensor to another; the output holds it on its own.
        return _saying(config, tied=False)
    if not heads and _says(config) is False and _says(reference.config) is True:
        return _saying(config, tied=True)
    return dict(config)


def _tied(checkpoint: Checkpoint, head: str) -> str | None:
    """Return the name of the embedding to which a checkpoint's configuration ties a head; None where it does not."""
    said = _says(checkpoint.config)
    if head in checkpoint.tied or said is False:
        return None
    classes = checkpoint.config.get("architectures")
    has_head = isinstance(classes, list) and any(str(each).endswith(_WITH_HEAD) for each in classes)
    if said is not True and (head in checkpoint.tensors or not has_head):
        return None
    own = checkpoint.tensors.get(head)
    for end in _EMBEDDINGS:
        for name, tensor in checkpoint.tensors.items():
            if name.endswith(end) and (own is None or own.shape == tensor.shape):
                return name
    return None


def _says(config: Mapping[str, Any]) -> bool | None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if isinstance(part.get(_KEY), bool):
            return bool(part[_KEY])
    return None


def _saying(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    parts = {
        key: {**value, _KEY: tied}
        for key, value in config.items()
        if key == "text_config" and isinstance(value, dict) and _KEY in value
    }
    return {**config, **parts, _KEY: tied}


def _as_one(checkpoint: Checkpoint, head: str, embedding: str) -> Checkpoint:
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != head}
    return replace(checkpoint, tensors=tensors, tied={**checkpoint.tied, head: embedding})


def _equal(checkpoint: Checkpoint, head: str, embedding: str | None, files: Files) -> bool:
    """Tell whether two stored tensors hold the same bytes."""
    if embedding is None:
        return False
    one, other = checkpoint.tensors[head], checkpoint.tensors[embedding]
    if (type(one), one.dtype, one.shape, one.constants) != (type(other), other.dtype, other.shape, other.constants):
        return False
    with Reader(checkpoint.files, files) as reader:
        runs = [(at, min(_BLOCK, one.numel - at)) for at in range(0, one.numel, _BLOCK)]
        return all(reader.read_bytes(one, *run) == reader.read_bytes(other, *run) for run in runs)
