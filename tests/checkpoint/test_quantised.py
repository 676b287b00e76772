"""Quantised checkpoints of every family, as small as they can be, and models that only look like them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from merge_cli.checkpoint import Checkpoint, open_checkpoint
from merge_cli.errors import CheckpointError

AT = "model.layers.0.mlp.up_proj"
HALF, BFLOAT, FULL = torch.float16, torch.bfloat16, torch.float32
BYTES, SIGNED, INT, UNSIGNED, LONG = torch.uint8, torch.int8, torch.int32, torch.uint32, torch.int64
FP8 = torch.float8_e4m3fn

# Who writes so, and the tensors of one linear layer with dtype and shape, as that tool writes them.
FAMILIES: list[tuple[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]]] = [
    ("MLX", {"weight": (UNSIGNED, (4, 2)), "scales": (HALF, (4, 1)), "biases": (HALF, (4, 1))}),
    ("bitsandbytes in 4 bits", {"weight": (BYTES, (8, 1)), "weight.absmax": (FULL, (1,)),
                                "weight.quant_map": (FULL, (16,))}),
    ("bitsandbytes in 4 bits", {"weight": (BYTES, (8, 1)), "weight.absmax": (BYTES, (1,)),
                                "weight.nested_absmax": (FULL, (1,)), "weight.nested_quant_map": (FULL, (256,)),
                                "weight.quant_state.bitsandbytes__nf4": (BYTES, (80,))}),
    ("bitsandbytes in 8 bits", {"weight": (SIGNED, (4, 4)), "SCB": (FULL, (4,)), "weight_format": (BYTES, ())}),
    ("compressed-tensors", {"weight_packed": (INT, (4, 1)), "weight_scale": (BFLOAT, (4, 1)),
                            "weight_shape": (LONG, (2,))}),
    ("compressed-tensors", {"weight_packed": (BYTES, (4, 2)), "weight_scale": (FP8, (4, 1)),
                            "weight_global_scale": (FULL, (1,)), "input_global_scale": (FULL, (1,))}),
    ("compressed-tensors", {"weight": (SIGNED, (4, 4)), "weight_scale": (BFLOAT, (4, 1))}),
    ("compressed-tensors", {"weight": (SIGNED, (4, 4)), "weight_scale": (BFLOAT, (4, 1)),
                            "weight_zero_point": (SIGNED, (4, 1))}),
    ("compressed-tensors", {"compressed": (BFLOAT, (8,)), "bitmask": (BYTES, (4, 1)), "shape": (LONG, (2,))}),
    ("ModelOpt", {"weight": (FP8, (4, 4)), "weight_scale": (FULL, (4, 1)), "weight_scale_2": (FULL, ())}),
    ("ComfyUI", {"weight": (FP8, (4, 4)), "scale_weight": (FULL, ())}),
    ("GPTQ", {"qweight": (INT, (1, 4)), "qzeros": (INT, (1, 1)), "scales": (HALF, (1, 4)), "g_idx": (INT, (4,))}),
    ("AWQ", {"qweight": (INT, (4, 1)), "qzeros": (INT, (1, 1)), "scales": (HALF, (1, 8))}),
    ("EETQ", {"weight": (SIGNED, (4, 4)), "weight_scales": (HALF, (4,))}),
    ("HQQ", {"W_q": (BYTES, (2, 4)), "scale": (HALF, (4, 1)), "zero": (HALF, (4, 1)), "group_size": (INT, ())}),
    ("HQQ", {"W_q": (HALF, (2, 4)), "scale": (HALF, (4, 1)), "zero": (HALF, (4, 1))}),
    ("AQLM", {"codes": (torch.int16, (4, 1, 1)), "codebooks": (HALF, (1, 8, 1, 8)), "scales": (HALF, (4, 1, 1, 1))}),
    ("VPTQ", {"indices": (INT, (1, 4, 1)), "centroids.weight": (HALF, (1, 8)), "weight_scale": (HALF, (4,))}),
    ("QuIP#", {"Qidxs": (LONG, (4, 1)), "SU": (HALF, (4,)), "SV": (HALF, (4,))}),
    ("ExLlama", {"q_weight": (INT, (1, 4)), "q_scale": (INT, (1, 1)), "q_groups": (torch.int16, (2,))}),
    ("ExLlama", {"trellis": (torch.int16, (1, 1, 48)), "suh": (HALF, (4,)), "svh": (HALF, (4,))}),
    ("quanto", {"weight._data": (SIGNED, (4, 4)), "weight._scale": (BFLOAT, (4, 1)), "input_scale": (BFLOAT, ())}),
    ("MXFP4", {"experts.gate_up_proj_blocks": (BYTES, (1, 4, 1, 16)), "experts.gate_up_proj_scales": (BYTES, (1, 4, 1)),
               "experts.gate_up_proj_bias": (BFLOAT, (1, 4))}),
    ("NVFP4", {"weight": (BYTES, (4, 8)), "weight_scale": (FP8, (4, 1)), "weight_scale_2": (FULL, ()),
               "input_scale": (FULL, ())}),
    ("torchao", {"_weight_qdata": (SIGNED, (4, 4)), "_weight_scale": (BFLOAT, (4, 1)),
                 "_weight_zero_point": (SIGNED, (4, 1))}),
    ("BitNet", {"weight": (BYTES, (1, 4)), "weight_scale": (BFLOAT, (1,))}),
]  # fmt: skip
METHODS = ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "mxfp4", "torchao", "a method of tomorrow"]


def written(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(dict(tensors), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def layer(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Tensor]:
    norm = {"model.norm.weight": torch.ones(4, dtype=BFLOAT)}
    return norm | {f"{AT}.{name}": torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError, match="is quantised") as caught:
        open_checkpoint(folder)
    return caught.value


@pytest.mark.parametrize(("family", "tensors"), FAMILIES, ids=lambda value: value if isinstance(value, str) else "")
def test_packed_weights_are_refused_by_what_they_are(
    family: str, tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]], tmp_path: Path
) -> None:
    error = refusal(written(tmp_path, layer(tensors), {"model_type": "llama"}))
    assert family in error.message
    assert any(f"{AT}.{name}" in error.message for name in tensors)
    assert error.hint == ("merge the original checkpoint in bfloat16, float16 or float32, then quantise the result")


@pytest.mark.parametrize("name", ["weight", "model.embed.weight"])
@pytest.mark.parametrize("dtype", [BYTES, SIGNED, INT, UNSIGNED, LONG])
def test_a_matrix_of_integers_is_no_weight_whoever_wrote_it(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: torch.ones(2, 3, dtype=dtype), "norm.weight": torch.ones(3)}
    assert f"numbers as weights ({name})" in refusal(written(tmp_path, state)).message


@pytest.mark.parametrize("scale", ["experts.up_scale", "experts.up.scale", "experts.up_scales", "experts.up.scales"])
def test_integers_of_any_name_with_scales_beside_them_are_refused(scale: str, tmp_path: Path) -> None:
    state = {"experts.up": torch.ones(2, 3, 4, dtype=SIGNED), scale: torch.ones(2)}
    assert f"int8 numbers (experts.up) with scales ({scale})" in refusal(written(tmp_path, state)).message


@pytest.mark.parametrize(
    "tensors",
    [
        {"codebooks": torch.ones(2, 3), "centroids.weight": torch.ones(2, 3), "codes": torch.ones(3)},
        {"num_blocks": torch.tensor(3), "attn.bias": torch.ones(1, 1, 4, 4, dtype=BYTES)},
        {"embeddings.position_ids": torch.arange(4)[None], "relative_position_index": torch.zeros(4, 4, dtype=LONG)},
        {"attn.W_q": torch.ones(2, 3), "attn.W_k": torch.ones(2, 3)},
        {"q_scale": torch.ones(1), "logit_scale": torch.ones(()), "layer.scale": torch.ones(4)},
        {"bn.num_batches_tracked": torch.tensor(3), "weight_scale": torch.ones(3)},
    ],
)
def test_what_models_of_plain_numbers_hold_is_no_quantisation(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    state = {"w.weight": torch.ones(2, 3), **tensors}
    assert set(open_checkpoint(written(tmp_path, state)).tensors) == set(state)


def opened_with(config: Mapping[str, Any], folder: Path, dtype: torch.dtype = BFLOAT) -> Checkpoint:
    return open_checkpoint(written(folder, {f"{AT}.weight": torch.ones(2, 3, dtype=dtype)}, config))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [BFLOAT, HALF, FULL])
def test_a_quantization_config_beside_plain_weights_is_left_out(
    method: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    said = {"model_type": "llama", "quantization_config": {"quant_method": method, "bits": 4}}
    checkpoint = opened_with(said, tmp_path, dtype)
    assert checkpoint.config == {"model_type": "llama"}
    (note,) = checkpoint.notes
    assert note == (
        f"the quantization_config ({method}) of its config.json is left over and left out: the weights are "
        f"{str(dtype).removeprefix('torch.')}"
    )


def test_what_is_left_over_in_the_configuration_of_a_part_is_left_out_too(tmp_path: Path) -> None:
    said = {"quantization": {"bits": 4, "group_size": 64}, "text_config": {"a": 1, "quantization_config": {"bits": 8}}}
    checkpoint = opened_with(said, tmp_path)
    assert checkpoint.config == {"text_config": {"a": 1}}
    assert "quantization (4 bits)" in checkpoint.notes[0]


def test_the_configuration_is_named_where_the_tensors_agree_with_it(tmp_path: Path) -> None:
    state = {f"{AT}.weight": torch.ones(2, 3, dtype=FP8), f"{AT}.scale_weight": torch.ones(1, 1)}
    error = refusal(written(tmp_path, state, {"quantization_config": {"quant_method": "fp8"}}))
    assert "its config.json has a quantization_config (fp8) and it holds scales" in error.message


@pytest.mark.parametrize("dtype", [FP8, SIGNED, BYTES])
def test_what_says_that_it_is_quantised_and_holds_narrow_numbers_is(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"experts.up": torch.ones(2, 3, dtype=dtype), "w": torch.ones(2, 3)}
    said = {"quantization_config": {"quant_method": "fp8"}}
    assert "(experts.up)" in refusal(written(tmp_path, state, said)).message


def test_a_model_that_is_quantised_while_it_runs_needs_its_configuration(tmp_path: Path) -> None:
    said = {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}}
    with pytest.raises(CheckpointError, match=r"is quantised while it runs.*quantization_config \(bitnet\)"):
        opened_with(said, tmp_path)


@pytest.mark.parametrize(
    "said", [{"quantization_config": None}, {"quantization": "none"}, {"quantization": {"codebooks": 4}}]
)
def test_a_configuration_that_says_nothing_of_a_quantisation_stays(said: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = opened_with(said, tmp_path)
    assert checkpoint.config == said
    assert checkpoint.notes == ()
