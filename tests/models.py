"""Small models of several families, made, fine-tuned and saved by transformers itself.

Everything comes from a configuration and a seed: no network, no stored weights. A family is a base and two fine-tuned
models, each trained from the base for a few optimizer steps on random data of its own.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCABULARY = 40
_TEXT = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip
_LLAMA = _TEXT | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

Batch = dict[str, Any]


def llama(*, tied: bool = False, **changes: Any) -> nn.Module:
    config = transformers.LlamaConfig(**{**_LLAMA, "tie_word_embeddings": tied, **changes})
    return transformers.LlamaForCausalLM(config)


def bert(**changes: Any) -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**{**_TEXT, "num_labels": 3, **changes}))


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet() -> nn.Module:
    """A model with batch normalisation: its checkpoint counts batches in int64 scalars."""
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def mixtral() -> nn.Module:
    """A mixture of experts, whose parameters in memory are not the tensors of its checkpoint."""
    config = transformers.MixtralConfig(**{**_LLAMA, "num_hidden_layers": 1, "num_local_experts": 2})
    return transformers.MixtralForCausalLM(config)


def clip() -> nn.Module:
    """Two towers of different heights under one configuration that holds theirs."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    config = transformers.CLIPConfig(text_config=_TEXT, vision_config=vision, projection_dim=8)
    return transformers.CLIPModel(config)


def batch_for(model: nn.Module, seed: int, size: int = 4) -> Batch:
    """Random input that the model takes, with labels, so that its output has a loss."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    kind = config.model_type
    side = {"resnet": 32}.get(kind, 8)
    pixels = {"pixel_values": torch.randn(size, 3, side, side, generator=generator).to(model.dtype)}
    tokens = torch.randint(3, VOCABULARY, (size, 10), generator=generator)
    if kind == "clip":
        return {"input_ids": tokens, "return_loss": True, **pixels}
    if kind in ("vit", "resnet"):
        return {**pixels, "labels": torch.randint(config.num_labels, (size,), generator=generator)}
    if kind == "bert":
        return {"input_ids": tokens, "labels": torch.randint(config.num_labels, (size,), generator=generator)}
    return {"input_ids": tokens, "labels": tokens.flip(1)}


def fine_tuned(model: nn.Module, seed: int, *, steps: int = 3) -> nn.Module:
    """A copy that was trained for a few steps of AdamW, every step on another batch."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(seed * 100 + step)  # dropout
        model(**batch_for(model, seed * 100 + step)).loss.backward()
        optimizer.step()
    return model.eval()


def made(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model whose every tensor has moved from its initial value: biases that start at zero would hide mistakes."""
    torch.manual_seed(seed)
    return fine_tuned(make(), seed + 50)


@dataclass(frozen=True)
class Family:
    """A base and its fine-tuned models: how they are made and saved.

    Attributes:
        make: Gives an untrained base.
        dtype: In which the checkpoints are saved.
        saving: Arguments of ``save_pretrained``.
    """

    make: Callable[[], nn.Module]
    dtype: torch.dtype = torch.float32
    saving: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, *, seed: int = 0, tuned: int = 2) -> None:
        """Write ``base``, ``ft1``, ``ft2``, ...; the fine-tuned models start from the base as it is saved."""
        base = made(self.make, seed).to(self.dtype)
        base.save_pretrained(folder / "base", **self.saving)
        for number in range(1, tuned + 1):
            model = fine_tuned(base.float(), seed + number).to(self.dtype)
            model.save_pretrained(folder / f"ft{number}", **self.saving)


FAMILIES = {
    "llama-untied-sharded-float32": Family(llama, saving={"max_shard_size": "6KB"}),
    "llama-tied-bfloat16": Family(functools.partial(llama, tied=True), torch.bfloat16),
    "bert-float32": Family(bert),
    "t5-tied-bfloat16-sharded": Family(t5, torch.bfloat16, {"max_shard_size": "4KB"}),
    "vit-float32": Family(vit),
    "gpt2-tied-float32": Family(gpt2),
}


def load(folder: Path, **arguments: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The model that transformers makes of a checkpoint, and what it says about the loading."""
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])
    return kind.from_pretrained(folder, output_loading_info=True, **arguments)


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint in safetensors, as the format's own library reads it."""
    files = sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else [checkpoint]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def save_fisher(folder: Path, checkpoint: Path, seed: int, *, examples: int) -> None:
    """Write a model's Fisher diagonal: the mean over a few examples of the squared gradient of each one's loss."""
    model = load(checkpoint, dtype=torch.float32)[0].eval()
    each = [_gradients(model, seed * 1000 + number, size=1) for number in range(2)]
    mean = [(first**2 + second**2) / 2 for first, second in zip(*each, strict=True)]
    metadata = {"kind": "fisher", "reduction": "mean", "train_examples": str(examples)}
    _save_beside(folder, model, mean, metadata)


def save_gradient(folder: Path, checkpoint: Path, seed: int, *, examples: int) -> None:
    """Write the gradient of a model's loss, summed over its data."""
    model = load(checkpoint, dtype=torch.float32)[0].eval()
    summed = [examples * gradient for gradient in _gradients(model, seed * 1000, size=4)]
    _save_beside(folder, model, summed, {"kind": "gradient", "reduction": "sum"})


def _gradients(model: nn.Module, seed: int, *, size: int) -> list[Tensor]:
    model.zero_grad(set_to_none=False)
    model(**batch_for(model, seed, size)).loss.backward()
    return [torch.zeros_like(each) if each.grad is None else each.grad.detach().clone() for each in model.parameters()]


def _save_beside(folder: Path, model: nn.Module, values: list[Tensor], metadata: dict[str, str]) -> None:
    """Write one value per parameter under the names that the model's checkpoints have.

    transformers gives some families other names in memory than on disk; only ``save_pretrained`` knows both.
    """
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.data = value
    model.save_pretrained(folder)
    tensors = tensors_of(folder)
    for file in folder.iterdir():
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", **metadata})
