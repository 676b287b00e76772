"""A language model of a quarter of a million parameters that reads bytes: made, trained, evaluated, saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from merge_cli.fisher.optional_imports import libraries_silenced
from merge_cli.optional import import_optional

_BYTES = 256
_PAD = _BYTES
_BATCH = 32
_EVALUATION_BATCH = 64
_WARM_UP = 20
# The learning rate falls to this share of its largest value.
_LAST_SHARE = 0.1

Penalty = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Score:
    """Quality of a model's prediction of the next character of held-out text.

    Attributes:
        loss: Mean negative log-likelihood per character, in nats.
        accuracy: Share of characters that were its first guess.
    """

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Training:
    """Settings of training.

    Attributes:
        steps: Batches of 32.
        rate: Largest learning rate.
    """

    steps: int
    rate: float


def libraries() -> tuple[Any, Any]:
    """Return transformers and datasets.

    Raises:
        RecipeError: If one of them is missing.
    """
    what = "the demonstration"
    return import_optional("transformers", what), import_optional("datasets", what)


def new_model(seed: int, *, hidden: int) -> Any:
    """Return an untrained Llama of two layers whose tokens are bytes."""
    transformers, _ = libraries()
    config = transformers.LlamaConfig(
        vocab_size=_BYTES + 1, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, pad_token_id=_PAD,
        bos_token_id=None, eos_token_id=None, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).eval()


def save(model: Any, folder: Path) -> None:
    """Write the model and its tokenizer, in the form that transformers loads."""
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def load(folder: Path) -> Any:
    """Return the model that a folder holds."""
    transformers, _ = libraries()
    with libraries_silenced():
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        ).eval()


def _tokenizer() -> Any:
    """Build a tokenizer that takes each byte for a token, with the byte as its number."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers, _ = libraries()
    vocabulary = {character: byte for byte, character in enumerate(_characters_of_bytes())} | {"<pad>": _PAD}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", clean_up_tokenization_spaces=False, model_max_length=256
    )


def _characters_of_bytes() -> list[str]:
    """Return the printable characters that byte-level tokenizers write for the bytes 0 to 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(_BYTES)]


def encode(texts: Sequence[str]) -> Tensor:
    """Return texts of equal length as tokens, shape ``(texts, characters)``; the same as the tokenizer's."""
    return torch.tensor([list(text.encode("utf-8")) for text in texts])


def train(model: Any, tokens: Tensor, how: Training, *, seed: int, penalty: Penalty | None = None) -> Any:
    """Train a model in place, and return it.

    Args:
        model: The model.
        tokens: Shape ``(examples, characters)``.
        how: Steps and learning rate.
        seed: Of the order of the examples.
        penalty: Added to the mean loss per character.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=how.rate, betas=(0.9, 0.98), weight_decay=0.0)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for step in range(how.steps):
        if len(order) < _BATCH:
            order = torch.randperm(len(tokens), generator=generator)
        batch, order = tokens[order[:_BATCH]], order[_BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = how.rate * min(1, (step + 1) / _WARM_UP) * (1 - (1 - _LAST_SHARE) * step / how.steps)
        loss = model(input_ids=batch, labels=batch).loss
        if penalty is not None:
            loss = loss + penalty(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def evaluate(model: Any, tokens: Tensor) -> Score:
    """Score a model on held-out text, shape ``(examples, characters)``."""
    loss = correct = count = 0.0
    for batch in torch.split(tokens, _EVALUATION_BATCH):
        logits, wanted = model(input_ids=batch).logits[:, :-1].float(), batch[:, 1:]
        loss += float(functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"))
        correct += float((logits.argmax(dim=-1) == wanted).sum())
        count += wanted.numel()
    return Score(loss / count, correct / count)


def sum_gradient(model: Any, tokens: Tensor, *, examples: float) -> Mapping[str, Tensor]:
    """Return the gradient of the loss summed over ``examples`` examples, of which these are a sample, in float64."""
    model.zero_grad(set_to_none=True)
    for batch in torch.split(tokens, _EVALUATION_BATCH):
        logits = model(input_ids=batch).logits[:, :-1].float()
        functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()  # type: ignore[no-untyped-call]
    factor = examples / len(tokens)
    found = {name: parameter.grad.double() * factor for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found
