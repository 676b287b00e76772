"""Files that are not checkpoints: adapters, configurations, optimizers, files of other programs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from merge_cli.errors import CheckpointError
from merge_cli.text import listed

_MERGE_IN = "merge it into its base first: peft's merge_and_unload, then save_pretrained"
_RESAVE = "load it with transformers and save it again: save_pretrained writes safetensors"
# Factors from which adapters make their weights: LoRA and its kin, LoHa, LoKr, IA3, OFT, VeRA, and learned prompts.
_FACTOR = re.compile(
    r"(^|[._])(lora_(A|B|embedding_A|embedding_B|magnitude_vector|up|down)|hada_[wt]\d(_[ab])?|lokr_[wt]\d(_[ab])?"
    r"|ia3_l|oft_[RrsS]|oft_blocks|boft_[Rs]|vera_lambda_[bd]|prompt_embeddings)(\.|$)"
)
# One of these is part of each such name; looking for them spares nearly all names the search.
_PARTS = ("lora_", "hada_", "lokr_", "ia3_", "oft_", "vera_", "prompt_embeddings")
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")
# How files end that are no weights, what they are, and what to do instead.
_KINDS = (
    (r"\.(json|yaml|yml)", "is a configuration", "name its folder"),
    (r"\.gguf", "is a quantised or converted model (GGUF)", "merge the original checkpoint, then convert the result"),
    (r"\.(h5|keras)", "holds weights of TensorFlow", _RESAVE),
    (r"\.msgpack", "holds weights of Flax", _RESAVE),
    (r"\.(onnx|tflite|engine)", "is a compiled model", "name the checkpoint that it was made of"),
    (r"(^|_)(optimizer|scheduler|rng_state\w*)\.(pt|pth|bin)|optim_states\.pt", "is the state of an optimizer", None),
    (r"model_states\.pt", "is a part of a DeepSpeed checkpoint", "gather it first: zero_to_fp32.py beside it does so"),
    (r"training_args\.bin", "holds the settings of a training", None),
)  # fmt: skip
_NAME_THE_MODEL = "name the folder of the model"


def refuse_foreign_file(path: Path) -> None:
    """Refuse a file that is no weights by its name.

    Raises:
        CheckpointError: Saying what it is.
    """
    for ending, what, hint in _KINDS:
        if re.search(f"{ending}$", path.name):
            raise CheckpointError(f"{path} {what}, not weights", hint=hint or _NAME_THE_MODEL)


def refuse_foreign_folder(folder: Path) -> None:
    """Refuse a folder without weights that holds what other programs take for some.

    Raises:
        CheckpointError: Saying what it holds; nothing where that is not known.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in {".gguf", ".h5", ".msgpack", ".onnx"} or path.name.endswith("_states.pt"):
            refuse_foreign_file(path)
        if path.name == "zero_to_fp32.py":
            raise CheckpointError(
                f"{folder} holds a DeepSpeed checkpoint, whose weights are in parts",
                hint="gather them first: run the zero_to_fp32.py that stands there",
            )


def refuse_adapter_folder(folder: Path) -> None:
    """Refuse a folder that holds an adapter and no model.

    Raises:
        CheckpointError: If it does.
    """
    if (folder / "adapter_model.safetensors").is_file() or (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} holds a LoRA adapter, which is not supported yet", hint=_MERGE_IN)


def refuse_factors(root: Path, names: Iterable[str]) -> None:
    """Refuse what holds factors of weights, or weights joined into one row, in place of weights.

    Averages of factors are no factors of the averages.

    Raises:
        CheckpointError: With names.
    """
    factors, flat = [], []
    for name in names:
        if any(part in name for part in _PARTS) and _FACTOR.search(name):
            factors.append(name)
        elif name.endswith("param") and _FLAT.search(name):
            flat.append(name)
    if factors:
        raise CheckpointError(
            f"{root} holds an adapter (LoRA or its kin: {listed(factors, most=2)}), which is not supported yet",
            hint=_MERGE_IN,
        )
    if flat:
        raise CheckpointError(
            f"{root} holds weights as FSDP joins them ({listed(flat, most=2)})",
            hint="save the full state dict: state_dict_type FULL_STATE_DICT",
        )
