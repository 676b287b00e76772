"""Tiny transformers models with random weights, batches for them, and the loop that every estimate is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from merge_cli.fisher.likelihood import Task
from merge_cli.fisher.objective import Batch

_SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
_TEXT = {**_SMALL, "vocab_size": 50, "max_position_embeddings": 40}
_LLAMA = {**_TEXT, **_SPECIAL, "num_key_value_heads": 2, "pad_token_id": 0, "use_cache": False}
_T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "use_cache": False}
_GPT2 = {**_SPECIAL, "vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}
_VIT = {**_SMALL, "image_size": 8, "patch_size": 4, "num_labels": 3}
_GEMMA = {**_LLAMA, "head_dim": 4}
_SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4,
         "num_labels": 3}  # fmt: skip
_DEBERTA = {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
            "share_att_key": True, "norm_rel_ebd": "layer_norm"}  # fmt: skip

# Name -> (model class, configuration class, its settings, task)
FAMILIES: dict[str, tuple[str, str, dict[str, Any], Task]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_LLAMA, "tie_word_embeddings": False}, Task.CAUSAL_LM),
    "llama tied": ("LlamaForCausalLM", "LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}, Task.CAUSAL_LM),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2, Task.CAUSAL_LM),
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT, Task.SEQUENCE_CLASSIFICATION),
    "bert masked": ("BertForMaskedLM", "BertConfig", _TEXT, Task.MASKED_LM),
    "bert tokens": ("BertForTokenClassification", "BertConfig", {**_TEXT, "num_labels": 5}, Task.TOKEN_CLASSIFICATION),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**_TEXT, "num_labels": 3},
                Task.SEQUENCE_CLASSIFICATION),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**_T5, "decoder_start_token_id": 0}, Task.SEQ2SEQ_LM),
    "vit": ("ViTForImageClassification", "ViTConfig", _VIT, Task.IMAGE_CLASSIFICATION),
}  # fmt: skip
# Families with what no rule knows: shared layers, experts, scaled tied embeddings, tables of positions, windows.
UNUSUAL: dict[str, tuple[str, str, dict[str, Any], Task]] = {
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**_TEXT, "embedding_size": 8},
               Task.SEQUENCE_CLASSIFICATION),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_LLAMA, "num_local_experts": 4}, Task.CAUSAL_LM),
    "gemma": ("Gemma2ForCausalLM", "Gemma2Config", _GEMMA, Task.CAUSAL_LM),
    "deberta": ("DebertaV2ForSequenceClassification", "DebertaV2Config", _DEBERTA, Task.SEQUENCE_CLASSIFICATION),
    "swin": ("SwinForImageClassification", "SwinConfig", _SWIN, Task.IMAGE_CLASSIFICATION),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    model: nn.Module
    batch: Batch
    task: Task


def build(family: str, *, size: int = 8, seed: int = 1) -> Case:
    """A model whose every parameter matters, and a batch of examples of different lengths."""
    model_class, config_class, settings, task = (FAMILIES | UNUSUAL)[family]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**settings)
    model: nn.Module = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    keys = tuple(range(100, 100 + size))
    if task is Task.IMAGE_CLASSIFICATION:
        images = torch.randn(size, 3, config.image_size, config.image_size)
        return Case(model, Batch({"pixel_values": images}, keys, torch.arange(size) % 3), task)
    ids = torch.randint(3, 50, (size, 9))
    mask = (torch.arange(9)[None] < 3 + torch.arange(size)[:, None] % 7).long()
    ids[mask == 0] = config.pad_token_id or 0
    labels = ids.masked_fill(mask == 0, -100)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if task is Task.SEQ2SEQ_LM:
        inputs["decoder_input_ids"] = torch.randint(3, 50, (size, 5))
        labels = torch.randint(3, 50, (size, 5))
        labels[2:, 3:] = -100
    elif task is Task.TOKEN_CLASSIFICATION:
        labels = labels.remainder(5).masked_fill(mask == 0, -100)
    elif task is Task.MASKED_LM:
        labels[:, ::2] = -100
    elif task is Task.SEQUENCE_CLASSIFICATION:
        labels = torch.arange(size) % 2
    return Case(model, Batch(inputs, keys, labels), task)


def nll(case: Case, row: int, labels: Tensor) -> Tensor:
    """Negative log-likelihood of one example's labels, summed over tokens, from a batch of one; written on its own."""
    outputs = case.model(**{name: value[row : row + 1] for name, value in case.batch.inputs.items()})
    logits = outputs.logits[0]
    if case.task is Task.CAUSAL_LM:
        logits, labels = logits[:-1], labels[1:]
    log_probabilities = torch.log_softmax(logits, dim=-1)
    if labels.dim() == 0:
        return -log_probabilities[labels]
    return -sum(log_probabilities[place, label] for place, label in enumerate(labels.tolist()) if label != -100)


def loop(case: Case, labels: list[Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    """Sum over examples and label choices of weight times squared gradient, float64, by torch.autograd.grad."""
    named = dict(case.model.named_parameters())
    case.model.requires_grad_(True)
    totals = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in named.items()}
    for row in range(case.batch.size):
        for choice, weight in zip(labels, weights, strict=True):
            loss = nll(case, row, choice[row])
            if not isinstance(loss, Tensor):
                continue
            for name, gradient in zip(
                named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True
            ):
                if gradient is not None:
                    totals[name] += weight[row].double() * gradient.double() ** 2
    case.model.requires_grad_(False)
    return totals


def worst_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest deviation in a tensor relative to its largest entry; entries that are rounding of zero aside."""
    largest = max(float(value.max()) for value in expected.values())
    return max(
        float((found[name].double() - value).abs().max()) / (float(value.max()) + 1e-7 * largest)
        for name, value in expected.items()
    )
