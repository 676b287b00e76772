"""What is given for a checkpoint and is none."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from merge_cli.checkpoint import open_checkpoint
from merge_cli.errors import CheckpointError

AT = "base_model.model.model.layers.0.self_attn.q_proj"


def refusal(root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(root)
    assert str(root) in caught.value.message
    assert caught.value.hint is not None
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        f"{AT}.lora_A.weight", f"{AT}.lora_B.default.weight", f"{AT}.lora_embedding_A", f"{AT}.lora_magnitude_vector",
        f"{AT}.lora_magnitude_vector.weight", f"{AT}.hada_w1_a", f"{AT}.hada_t2", f"{AT}.lokr_w1", f"{AT}.lokr_w2_b",
        f"{AT}.ia3_l", f"{AT}.oft_R.weight", f"{AT}.boft_R", f"{AT}.vera_lambda_b", "prompt_embeddings",
        "lora_unet_down_blocks_0.lora_down.weight", "lora_A.weight",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["a file of any name", "a folder", "a pickle"])
def test_factors_of_an_adapter_are_refused_wherever_they_stand(kind: str, name: str, tmp_path: Path) -> None:
    state = {name: torch.ones(2, 3), "model.norm.weight": torch.ones(3)}
    if kind == "a pickle":
        root = tmp_path / "pytorch_model.bin"
        torch.save(state, root)
    else:
        file = tmp_path / ("tuned.safetensors" if kind == "a file of any name" else "model.safetensors")
        safetensors.torch.save_file(state, file)
        root = file if kind == "a file of any name" else tmp_path
    said = refusal(root)
    assert f"holds an adapter (LoRA or its kin: {name})" in said
    assert "hint: merge it into its base first" in said


@pytest.mark.parametrize("name", ["blocks.0.lora.weight", "explora_A.weight", "soft_R.weight", "w_lora_rank.weight"])
def test_a_name_that_only_looks_like_that_of_a_factor_is_a_weight(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({name: torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == [name]


def test_weights_that_fsdp_joined_into_one_row_are_refused(tmp_path: Path) -> None:
    state = {"model.layers.0._fsdp_wrapped_module._flat_param": torch.ones(9)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert "FULL_STATE_DICT" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("config.json", "is a configuration, not weights\n  hint: name its folder"),
        ("recipe.yml", "is a configuration"),
        ("model-Q4_K_M.gguf", "GGUF"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("model.onnx", "compiled"),
        ("optimizer.pt", "is the state of an optimizer"),
        ("rng_state_0.pth", "is the state of an optimizer"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "is the state of an optimizer"),
        ("mp_rank_00_model_states.pt", "zero_to_fp32.py"),
        ("training_args.bin", "settings of a training"),
    ],
)
def test_a_file_that_is_no_weights_is_called_what_it_is(file: str, what: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"{}")
    assert what in refusal(tmp_path / file)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("model-Q4_K_M.gguf", "GGUF"),
        ("tf_model.h5", "TensorFlow"),
        ("mp_rank_00_model_states.pt", "DeepSpeed"),
        ("zero_to_fp32.py", "gather them first"),
    ],
)
def test_a_folder_of_what_other_programs_take_for_weights_is_called_what_it_is(
    file: str, what: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert what in str(caught.value)


def test_what_other_programs_left_beside_the_weights_does_no_harm(tmp_path: Path) -> None:
    for file in ("model.gguf", "tf_model.h5", "zero_to_fp32.py", "optimizer.pt"):
        (tmp_path / file).write_bytes(b"")
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]
