"""What the checkpoints of a family look like: names and shapes, and no numbers.

Imports neither torch nor numpy, as everything that measures other processes must not (see ``measuring``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Shapes = Iterator[tuple[str, tuple[int, ...]]]

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Architecture:
    """The sizes that decide every shape of a Qwen2 model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    tied: bool = True


SIZES = {
    "60m": Architecture(512, 8, 8, 2, 1408, 32000),
    "0.2b": Architecture(768, 12, 12, 2, 3072, 100000),
    "0.5b": Architecture(896, 24, 14, 2, 4864, 151936),
    "1.5b": Architecture(1536, 28, 12, 2, 8960, 151936),
    "7b": Architecture(3584, 28, 28, 4, 18944, 152064, tied=False),
}


def qwen2_shapes(sizes: Architecture) -> Shapes:
    """Yield the name and shape of every tensor of a Qwen2 model, in the order in which it is stored."""
    hidden = sizes.hidden
    kv_rows = hidden // sizes.heads * sizes.kv_heads
    yield EMBEDDING, (sizes.vocabulary, hidden)
    for layer in range(sizes.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        for name, rows in (("q_proj", hidden), ("k_proj", kv_rows), ("v_proj", kv_rows)):
            yield f"{prefix}.self_attn.{name}.weight", (rows, hidden)
            yield f"{prefix}.self_attn.{name}.bias", (rows,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (sizes.feed_forward, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (sizes.feed_forward, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, sizes.feed_forward)
    yield "model.norm.weight", (hidden,)
    if not sizes.tied:
        yield "lm_head.weight", (sizes.vocabulary, hidden)


def small_shapes(count: int) -> Shapes:
    """Yield ``count`` tensors of 1,024 elements, to show what a tensor costs beside its bytes."""
    return ((f"model.layers.{layer}.weight", (16, 64)) for layer in range(count))


def qwen2_config(sizes: Architecture) -> dict[str, Any]:
    """Return the ``config.json`` of a Qwen2 model."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.feed_forward,
        "max_position_embeddings": 32768,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": sizes.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": sizes.vocabulary,
    }


def tokenizer_files() -> dict[str, dict[str, Any]]:
    """Return the files of the least tokenizer that transformers loads: without any, mergekit stumbles over its lack."""
    words = ["<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    unknown = {"id": 0, "content": "<unk>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"}
    absent = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    return {
        "tokenizer.json": {
            "version": "1.0",
            **absent,
            "added_tokens": [unknown | flags],
            "pre_tokenizer": {"type": "Whitespace"},
            "model": model,
        },
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"},
    }
