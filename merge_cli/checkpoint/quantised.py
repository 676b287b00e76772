"""Quantised checkpoints, recognised by their tensors.

Every tool that quantises leaves tensors that no other checkpoint has: integers that hold several weights each, and the
scales that turn them, or float8 numbers, into weights. They tell more than ``config.json``, which some tools do not
write and others leave behind when the weights are 16-bit again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_cli.checkpoint.dtypes import DType
from merge_cli.checkpoint.sources import Source
from merge_cli.errors import CheckpointError
from merge_cli.text import listed

_ORIGINAL = "merge the original checkpoint in bfloat16, float16 or float32, then quantise the result"
# Where transformers, old versions of compressed-tensors, and MLX say how a model is quantised.
_KEYS = ("quantization_config", "compression_config")
_MLX_KEY = "quantization"
_MOST_DEPTH = 4


@dataclass(frozen=True)
class Family:
    """A way of writing quantised weights.

    Attributes:
        name: Who writes so.
        pattern: How the names of its tensors end.
        integers: Whether only integers of that name tell.
        beside: How the name of a tensor ends that stands beside, in place of what the pattern finds; empty for none.
    """

    name: str
    pattern: str
    integers: bool = False
    beside: str = ""


FAMILIES = (
    Family("bitsandbytes in 4 bits", r"\.(nested_)?(absmax|quant_map)"),
    Family("bitsandbytes in 4 bits", r"\.quant_state\.bitsandbytes__\w+"),
    Family("bitsandbytes in 8 bits", r"\.(SCB|weight_format)"),
    Family("compressed-tensors", r"[._]weight_(packed|shape|zero_point|global_scale|g_idx)"),
    Family("compressed-tensors", r"\.bitmask", integers=True),
    Family("GPTQ or AWQ", r"[._](qweight|qzeros)"),
    Family("GPTQ or AWQ", r"\.g_idx", integers=True),
    Family("HQQ", r"\.W_q", beside=".zero"),
    Family("AQLM", r"\.codes", integers=True),
    Family("VPTQ", r"\.indices", integers=True, beside=".centroids.weight"),
    Family("QuIP#", r"\.Qidxs", integers=True),
    Family("ExLlama", r"\.(q_weight|q_scale|q_groups|q_invperm|trellis)", integers=True),
    Family("quanto", r"weight\._(data|scale|shift|zeropoint)(\._data|\._packed)?"),
    Family("torchao", r"[._:]_?weight[_:.](qdata|int_data|tensor_impl\.\w+|zero_point)"),
    Family("MXFP4", r"_blocks", integers=True, beside="_scales"),
    Family("torch's own quantisation", r"\._packed_params(\.\w+)*"),
)  # fmt: skip
# How scales beside integers of any name are called, and who writes them so; the first that is found counts.
SCALES_OF_INTEGERS = {
    "weight_scales": "EETQ", "weight_scale_2": "NVFP4", "weight_scale_inv": "FP8 in blocks",
    "weight_scale": "compressed-tensors, torchao or BitNet", "scale_weight": "ComfyUI", "scales": "MLX",
    "biases": "MLX", "scale": "torchao",
}  # fmt: skip
SCALES_OF_FLOAT8 = {
    "weight_scale_inv": "FP8 in blocks", "weight_scale_2": "ModelOpt", "scale_weight": "ComfyUI",
    "weight_scale": "fbgemm_fp8 or compressed-tensors",
}  # fmt: skip
# Scales of float8 numbers, wherever they stand. Models of wider numbers have parameters of such names, too.
_SCALE_OF_FLOATS = re.compile(
    r"(^|[._])(weight_|input_|k_|v_)?scale(_inv|_2|_ub)?$|_scale$|(^|[._])q?scale_(weight|input|act)$"
)
_ANY = re.compile("|".join(f"(?P<f{i}>{family.pattern})$" for i, family in enumerate(FAMILIES)))
_CODES = frozenset({DType.U8, DType.I8, DType.U16, DType.I16, DType.U32, DType.I32})
_MASK = re.compile(r"(attn|attention)\.bias$|mask$|_ids$|index$")


def check_plain(
    root: Path, tensors: Mapping[str, Source], config: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str | None]:
    """Refuse quantised weights; take what says that weights are quantised which are not off the configuration.

    Args:
        root: Where the checkpoint is.
        tensors: Its tensors.
        config: Its configuration.

    Returns:
        The configuration without what is left over, and a note on it, None where nothing is.

    Raises:
        CheckpointError: If the weights are quantised; names who writes so, and what told it.
    """
    said = list(_said(config))
    found = _marked(tensors) or _scaled(tensors) or _packed(tensors) or (_narrow(tensors) if said else None)
    if found is None and not said:
        return config, None
    key, method, content = said[0] if said else ("", "", {})
    if found is not None:
        held, family = found
        told = f"its config.json has a {key} ({method}) and it holds {held}" if said else f"it holds {held}"
        by = "" if family is None else f"; {family} writes it so"
        raise CheckpointError(f"{root} is quantised: {told}, so its numbers are not the weights{by}", hint=_ORIGINAL)
    if content.get("quantization_mode") == "online":
        raise CheckpointError(
            f"{root} is quantised while it runs: its config.json has a {key} ({method}), with which the weights "
            "compute something else than they say",
            hint=f"merge it without the {key} in its config.json, and put that into the result's",
        )
    dtypes = listed(dict.fromkeys(tensor.dtype.torch_name for tensor in tensors.values() if tensor.dtype.is_float))
    note = f"the {key} ({method}) of its config.json is left over and left out: the weights are {dtypes}"
    return without_quantisation(config), note


def _said(config: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield each key by which the configuration, or that of a part, says that it is quantised; with method and all."""
    for key, value in config.items():
        if _says(key, value):
            bits = f"{value['bits']} bits" if "bits" in value else "no method"
            yield key, str(value.get("quant_method", bits))[:40], value
        elif _is_part(key, value, depth):
            yield from _said(value, depth + 1)


def without_quantisation(config: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return a configuration without what it, or that of a part of the model, says of a quantisation."""
    return {
        key: without_quantisation(value, depth + 1) if _is_part(key, value, depth) else value
        for key, value in config.items()
        if not _says(key, value)
    }


def _says(key: str, value: Any) -> bool:
    return isinstance(value, dict) and (
        key in _KEYS or (key == _MLX_KEY and bool({"bits", "group_size"} & value.keys()))
    )


def _is_part(key: str, value: Any, depth: int) -> bool:
    return isinstance(value, dict) and key.endswith("_config") and depth < _MOST_DEPTH


# What shows that weights are packed or scaled, and who writes it so.
_Finding = tuple[str, str | None]


def _marked(tensors: Mapping[str, Source]) -> _Finding | None:
    """Look for tensors whose names tell."""
    for name, tensor in tensors.items():
        # Spares nearly all names the search.
        match = None if name.endswith((".weight", ".bias")) else _ANY.search(name)
        if match is None:
            continue
        family = FAMILIES[int(str(match.lastgroup)[1:])]
        if family.integers and not _is_integer(tensor):
            continue
        if family.beside and name[: match.start()] + family.beside not in tensors:
            continue
        same = [each for each in tensors if (other := _ANY.search(each)) and other.lastgroup == match.lastgroup]
        held = "scales" if tensor.dtype.is_float else "packed integers"
        return f"{held} ({listed(same, most=2)})", family.name
    return None


def _scaled(tensors: Mapping[str, Source]) -> _Finding | None:
    """Look for numbers that have scales beside them."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            continue
        for ending, writer in SCALES_OF_INTEGERS.items():
            beside = [f"{name}_{ending}", f"{name}.{ending}"]
            if name == "weight" or name.endswith(".weight"):
                beside.append(name.removesuffix("weight") + ending)
            scale = next((each for each in beside if each in tensors), None)
            if scale is not None:
                return f"{tensor.dtype.torch_name} numbers ({name}) with scales ({scale})", writer
    if not any(_is_float8(tensor) for tensor in tensors.values()):
        return None
    scales = [name for name in tensors if _SCALE_OF_FLOATS.search(name)]
    return (f"scales ({listed(scales, most=2)})", _float8_writer(scales)) if scales else None


def _float8_writer(scales: list[str]) -> str:
    held = (writer for ending, writer in SCALES_OF_FLOAT8.items() if any(name.endswith(ending) for name in scales))
    return next(held, "a tool for FP8")


def _packed(tensors: Mapping[str, Source]) -> _Finding | None:
    """Look for matrices of integers that are called weights, whoever wrote them."""
    found = [name for name, tensor in tensors.items() if _is_integer(tensor) and _is_matrix_of_weights(tensor)]
    if not found:
        return None
    return f"{tensors[found[0]].dtype.torch_name} numbers as weights ({listed(found, most=2)})", None


def _is_matrix_of_weights(tensor: Source) -> bool:
    return len(tensor.shape) > 1 and (tensor.name == "weight" or tensor.name.endswith(".weight"))


def _narrow(tensors: Mapping[str, Source]) -> _Finding | None:
    """Look for any matrices of few bits, which are enough where the configuration says the rest."""
    for name, tensor in tensors.items():
        if _is_float8(tensor) or (tensor.dtype in _CODES and len(tensor.shape) > 1 and not _MASK.search(name)):
            return f"{tensor.dtype.torch_name} numbers ({name})", None
    return None


def _is_integer(tensor: Source) -> bool:
    return not tensor.dtype.is_float and tensor.dtype is not DType.BOOL


def _is_float8(tensor: Source) -> bool:
    return tensor.dtype.is_float and tensor.dtype.itemsize == 1
