"""Examples of generated text: completions, instructions and chats, with labels on the model's part alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from merge_cli.errors import CheckpointError
from merge_cli.fisher.batching import Encoded, Unusable
from merge_cli.fisher.likelihood import IGNORED
from merge_cli.optional import import_optional

_BEGINNING = "Below is an instruction that describes a task"
_FURTHER = ", paired with an input that provides further context"
_ENDING = ". Write a response that appropriately completes the request.\n\n### Instruction:\n"
# The speakers of ShareGPT's layout.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def instruction_prompt(instruction: str, context: str | None) -> str:
    """Return an instruction as the models that follow Alpaca are asked, whose answer comes next.

    Source:
        The prompt of Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca, with the line feed at its end that
        most training programs have.
    """
    if context and context.strip():
        return f"{_BEGINNING}{_FURTHER}{_ENDING}{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
    return f"{_BEGINNING}{_ENDING}{instruction}\n\n### Response:\n"


def joined(prompt: str, completion: str, joint: str) -> str:
    """Return a prompt with what stands between it and its completion."""
    return prompt if prompt[-1:].isspace() or completion[:1].isspace() else prompt + joint


def completion_example(tokenizer: Any, prompt: str, completion: str, max_length: int) -> Encoded:
    """Encode a prompt and what follows it, where the latter's tokens and the end of the text count.

    The two are encoded as one text, the way a model is trained on them; a token that holds the end of the prompt and
    the beginning of what follows counts.
    """
    ids = _ids(tokenizer, prompt + completion, special=True)
    first = _common(ids, _ids(tokenizer, prompt, special=True))
    end = tokenizer.eos_token_id
    if end is not None and ids[-1] != end:
        ids = [*ids, end]
    return _example(ids, [place >= first for place in range(len(ids))], max_length)


def chat_example(tokenizer: Any, turns: Sequence[dict[str, Any]], max_length: int, *, given: int = 0) -> Encoded:
    """Encode a chat by the tokenizer's template, where the assistant's turns count.

    Args:
        tokenizer: With a chat template.
        turns: Each with a role and content.
        max_length: Tokens at which the chat is cut off.
        given: Turns at the beginning of which none counts.
    """
    said = [number for number, turn in enumerate(turns) if turn["role"] == "assistant" and number >= given]
    if not said:
        raise Unusable("without a turn of the assistant")
    if given == 0 and tokenizer.is_fast and _GENERATION.search(tokenizer.get_chat_template()):
        return _by_blocks(tokenizer, turns, max_length)
    whole = _rendered(tokenizer, turns)
    ids = _ids(tokenizer, whole)
    counted = [False] * len(ids)
    for number in said:
        before, through = _rendered(tokenizer, turns[:number], ask=True), _rendered(tokenizer, turns[: number + 1])
        if not whole.startswith(before):
            raise CheckpointError(
                "the chat template does not render a chat turn by turn, so that the assistant's share cannot be told",
                hint="put {% generation %} and {% endgeneration %} around the assistant's turns in the template",
            )
        # What a template puts behind the end of a turn, the model is never asked for.
        end = len(before) + len(whole[len(before) : _common(whole, through)].rstrip())
        for place in range(_tokens_of(tokenizer, ids, whole, len(before)), _tokens_of(tokenizer, ids, whole, end)):
            counted[place] = True
    return _example(ids, counted, max_length)


def turns_of(value: Any) -> list[dict[str, Any]]:
    """Return a chat as turns with a role and content, whichever of the two layouts it has."""
    if not isinstance(value, list) or not value:
        raise Unusable("without a chat")
    return [_turn(each) for each in value]


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not say how a chat is written.

    Raises:
        CheckpointError: If it has no chat template.
        RecipeError: If the library that templates need is missing.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CheckpointError(
            "the data are chats, and the model's tokenizer has no chat template",
            hint="copy the chat_template.jinja that the model was trained with beside it, or that of its base",
        )
    import_optional("jinja2", "a chat template")


def _turn(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Unusable("with a turn that is none")
    # Where rows are stored as a table, a key that one turn has is empty in the others.
    turn = {key: held for key, held in value.items() if held is not None}
    if "from" in turn and "role" not in turn:
        speaker = str(turn.pop("from")).lower()
        turn = {"role": _SPEAKERS.get(speaker, speaker), "content": turn.pop("value", None), **turn}
    if not isinstance(turn.get("role"), str):
        raise Unusable("with a turn of nobody")
    if not isinstance(turn.get("content"), str) and not turn.get("tool_calls"):
        raise Unusable("with a turn that is not text")
    return turn


def _by_blocks(tokenizer: Any, turns: Sequence[dict[str, Any]], max_length: int) -> Encoded:
    """Encode a chat whose template says itself what the assistant generates."""
    made = _rendered(
        tokenizer, turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
        tokenizer_kwargs={"verbose": False},
    )  # fmt: skip
    return _example(list(made["input_ids"]), [bool(each) for each in made["assistant_masks"]], max_length)


def _rendered(tokenizer: Any, turns: Sequence[dict[str, Any]], *, ask: bool = False, **how: Any) -> Any:
    """Return what the template makes of turns; with ``ask`` up to where the assistant would go on."""
    try:
        return tokenizer.apply_chat_template(list(turns), add_generation_prompt=ask, **{"tokenize": False, **how})
    except import_optional("jinja2", "a chat template").TemplateError as error:
        raise Unusable(f"that the chat template refuses ({str(error).splitlines()[0][:80]})") from error


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _tokens_of(tokenizer: Any, ids: Sequence[int], text: str, end: int) -> int:
    """Return how many of the tokens of a text are those of its first ``end`` characters too."""
    return _common(ids, _ids(tokenizer, text[:end]))


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the beginning that two sequences share."""
    both = min(len(one), len(other))
    return next((place for place in range(both) if one[place] != other[place]), both)


def _example(ids: Sequence[int], counted: Sequence[bool], max_length: int) -> Encoded:
    tokens = torch.tensor(ids[:max_length], dtype=torch.long)
    label = tokens.masked_fill(~torch.tensor(counted[:max_length]), IGNORED)
    # Nothing predicts the first token.
    if bool((label[1:] == IGNORED).all()):
        behind = any(counted[max_length:])
        raise Unusable(f"whose answer begins behind {max_length} tokens" if behind else "without an answer")
    return Encoded({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, label, cut=len(ids) > max_length)
