"""A transformers model with its tokenizer or image processor, loaded for measuring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from merge_cli.checkpoint import Checkpoint, parse_float_dtype, to_torch
from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.fisher.configuration import cannot_load, read_configuration
from merge_cli.fisher.likelihood import Task
from merge_cli.fisher.optional_imports import libraries_silenced
from merge_cli.optional import import_optional
from merge_cli.text import listed

_AUTO_CLASSES = {
    Task.CAUSAL_LM: "AutoModelForCausalLM",
    Task.MASKED_LM: "AutoModelForMaskedLM",
    Task.SEQUENCE_CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    Task.SEQ2SEQ_LM: "AutoModelForSeq2SeqLM",
    Task.IMAGE_CLASSIFICATION: "AutoModelForImageClassification",
}
_ENDINGS = {
    "ForCausalLM": Task.CAUSAL_LM,
    "LMHeadModel": Task.CAUSAL_LM,
    "ForMaskedLM": Task.MASKED_LM,
    "ForSequenceClassification": Task.SEQUENCE_CLASSIFICATION,
    "ForTokenClassification": Task.TOKEN_CLASSIFICATION,
    "ForConditionalGeneration": Task.SEQ2SEQ_LM,
    "ForImageClassification": Task.IMAGE_CLASSIFICATION,
}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, and its tokenizer or image processor."""

    model: Any
    processor: Any
    task: Task


def guess_task(checkpoint: Checkpoint) -> Task:
    """Tell the task from the architecture that ``config.json`` names.

    Raises:
        RecipeError: If it names none that is known.
    """
    architectures = checkpoint.config.get("architectures") or []
    for architecture in architectures:
        for ending, task in _ENDINGS.items():
            if str(architecture).endswith(ending):
                return task
    said = f"its architecture is {listed(map(str, architectures))}" if architectures else "it names no architecture"
    raise RecipeError(f"{checkpoint.label}: {said}, which does not tell the task", hint=f"give --task: {listed(Task)}")


def load_model(
    checkpoint: Checkpoint, task: Task, *, dtype: str, device: torch.device, trusted: bool = False
) -> Loaded:
    """Load the model for a task, with its tokenizer or image processor.

    Args:
        checkpoint: Where it lies.
        task: What it is to predict.
        dtype: In which it computes.
        device: Where it runs.
        trusted: Whether Python code beside the weights may run.

    Raises:
        RecipeError: If transformers is missing or the dtype is unknown.
        CheckpointError: If transformers cannot load it, or it lacks weights that the task needs.
    """
    transformers = import_optional("transformers", "running a model")
    try:
        wanted = to_torch(parse_float_dtype(dtype))
    except ValueError as error:
        raise RecipeError(f"--dtype: {error}") from error
    auto: Any = getattr(transformers, _AUTO_CLASSES[task])
    images = task is Task.IMAGE_CLASSIFICATION
    _check_tokenizer(checkpoint, task)
    processor_class: Any = transformers.AutoImageProcessor if images else transformers.AutoTokenizer
    try:
        with libraries_silenced():
            config = read_configuration(checkpoint, trusted=trusted)
            model, info = auto.from_pretrained(
                str(checkpoint.root), config=config, dtype=wanted, output_loading_info=True, trust_remote_code=trusted
            )
            processor = (
                processor_class.from_pretrained(str(checkpoint.root), trust_remote_code=trusted)
                if not images or _has_processor(checkpoint)
                else None
            )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise cannot_load(checkpoint, error, f"it for {task}") from error
    missing = sorted(info["missing_keys"])
    if any(name in checkpoint.tensors for name in missing):
        raise CheckpointError(
            f"{checkpoint.label} has {listed(missing, most=2)} under names of a wrapper, which transformers does not "
            "know",
            hint="write it under its plain names first: a recipe with merge_method: linear and this model alone does",
        )
    if missing:
        raise CheckpointError(
            f"{checkpoint.label} has no {listed(missing)}, which {task} needs; they would be random",
            hint="choose the --task that the model was trained for",
        )
    _check_classes(checkpoint, task, model.config)
    _set_padding(checkpoint, task, model.config, processor)
    model.config.use_cache = False
    return Loaded(model.eval().to(device), processor, task)


def empty_model(checkpoint: Checkpoint) -> Any:
    """Return the model that the checkpoint's configuration describes, without numbers.

    Raises:
        RecipeError: If transformers is missing.
        CheckpointError: If transformers does not know the architecture.
    """
    transformers = import_optional("transformers", "naming the parameters")
    auto: Any = getattr(transformers, _AUTO_CLASSES[guess_task(checkpoint)])
    try:
        with libraries_silenced(), torch.device("meta"):
            return auto.from_config(read_configuration(checkpoint, trusted=False), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(checkpoint, error, "its configuration") from error


def longest_text(model: Any) -> int | None:
    """Return how many tokens the model has positions for; None where it has no such limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    first = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    # Roberta and its kin number their positions from behind the padding's.
    return limit - max(first, default=0)


def vocabulary_size(model: Any) -> int | None:
    """Return how many tokens the model has embeddings for; None where it has none."""
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return table.num_embeddings if isinstance(table, torch.nn.Embedding) else None


def _check_tokenizer(checkpoint: Checkpoint, task: Task) -> None:
    """Refuse a model without tokenizer: transformers would make an empty one, to which every word is unknown."""
    if task is Task.IMAGE_CLASSIFICATION or any((checkpoint.root / name).is_file() for name in _TOKENIZER_FILES):
        return
    raise CheckpointError(
        f"{checkpoint.label} has no tokenizer beside its weights", hint="copy the tokenizer's files of its base there"
    )


def _check_classes(checkpoint: Checkpoint, task: Task, config: Any) -> None:
    if task in {Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION} and (
        config.num_labels < 2 or getattr(config, "problem_type", None) in {"regression", "multi_label_classification"}
    ):
        raise RecipeError(
            f"{checkpoint.label} does not choose one of several classes: it has {config.num_labels} label(s), "
            f"problem_type {getattr(config, 'problem_type', None)}",
            hint="regression and several labels for one example are not supported",
        )


def _set_padding(checkpoint: Checkpoint, task: Task, config: Any, processor: Any) -> None:
    """Set the padding token of a decoder that classifies: it looks for the last token that is not padding."""
    text = config.get_text_config()
    if task is not Task.SEQUENCE_CLASSIFICATION or getattr(text, "pad_token_id", None) is not None:
        return
    text.pad_token_id = config.pad_token_id = processor.pad_token_id
    if processor.pad_token_id is None:
        raise CheckpointError(
            f"{checkpoint.label} has no padding token, so examples cannot be put into one batch",
            hint="set pad_token_id in its config.json, and pad_token in its tokenizer_config.json",
        )


def _has_processor(checkpoint: Checkpoint) -> bool:
    return any((checkpoint.root / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
