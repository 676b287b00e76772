"""Buffers that loaders compute, and tensors without elements."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan
from tests.plan.test_matching import planned, refused

W = torch.zeros(2, 3)
MASK = torch.ones(4, 4).tril()[None, None]


def names_of(plan: MergePlan) -> set[str]:
    return {task.target.name for task in plan.tasks}


@pytest.mark.parametrize("lacking", ["base", "one", "two"])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        ("rotary_emb.original_inv_freq", torch.ones(4)),
        ("embeddings.position_ids", torch.arange(4)[None]),
        ("bert.embeddings.token_type_ids", torch.zeros(1, 4, dtype=torch.int64)),
        ("h.0.attn.masked_bias", torch.tensor(-1e4)),
        ("h.0.attn.bias", MASK),
        ("h.0.attn.bias", MASK.bool()),
        ("layers.0.attention.bias", MASK.to(torch.uint8)),
        ("layers.0.relative_position_index", torch.zeros(4, 4, dtype=torch.int64)),
    ],
)
def test_buffers_that_loaders_compute_are_left_out_where_one_lacks_them(
    name: str, tensor: Tensor, lacking: str, tmp_path: Path
) -> None:
    checkpoints = {each: {"w": W, name: tensor} for each in ("base", "one", "two")}
    checkpoints[lacking] = {"w": W}
    plan = planned(tmp_path, checkpoints)
    assert names_of(plan) == {"w"}
    assert plan.notes == (f"{name} (1 tensor) left out: {lacking} lacks what a loader computes anyway",)


def test_buffers_of_many_layers_make_one_note(tmp_path: Path) -> None:
    more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(32)}
    plan = planned(tmp_path, {"base": {"w": W}, "one": {"w": W, **more}})
    assert plan.notes == (
        "model.layers.*.self_attn.rotary_emb.inv_freq (32 tensors) left out: base lacks what a loader computes anyway",
    )


def test_buffers_that_every_checkpoint_has_are_kept(tmp_path: Path) -> None:
    tensors = {"w": W, "rotary_emb.inv_freq": torch.ones(4), "position_ids": torch.arange(4), "h.0.attn.bias": MASK}
    plan = planned(tmp_path, {"base": tensors, "one": tensors})
    assert names_of(plan) == set(tensors)
    assert plan.notes == ()


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3), torch.zeros(3, 3), torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 3)]
)
def test_a_bias_of_attention_that_is_no_mask_is_missed(tensor: Tensor, tmp_path: Path) -> None:
    said = refused(CheckpointError, tmp_path, {"base": {"w": W}, "one": {"w": W, "h.0.attn.bias": tensor}})
    assert "h.0.attn.bias is missing in base" in said


def test_what_the_recipe_says_of_such_a_buffer_counts(tmp_path: Path) -> None:
    checkpoints = {"base": {"w": W}, "one": {"w": W, "inv_freq": torch.ones(4)}}
    plan = planned(tmp_path, checkpoints, exclude=[{"pattern": "inv_freq", "from": "one"}])
    assert names_of(plan) == {"w", "inv_freq"}


@pytest.mark.parametrize("emptied", [["base", "one"], ["one"], ["base"]])
def test_weights_that_were_saved_without_their_elements_are_refused(emptied: list[str], tmp_path: Path) -> None:
    full = {"w": W, "lm_head.weight": W, "norm.bias": torch.zeros(3)}
    empty = {"w": W, "lm_head.weight": torch.zeros(0), "norm.bias": torch.zeros(0)}
    checkpoints = {name: empty if name in emptied else full for name in ("base", "one")}
    said = refused(CheckpointError, tmp_path, checkpoints)
    where = "all checkpoints" if len(emptied) == 2 else emptied[0]
    assert said.startswith(f"2 weights with no elements in {where}: lm_head.weight, norm.bias\n  hint: ")
    assert "zero_to_fp32.py" in said


def test_one_that_is_to_be_copied_is_refused_too(tmp_path: Path) -> None:
    checkpoints = {"base": {"w": W, "head.weight": torch.zeros(0)}, "one": {"w": W, "head.weight": W}}
    said = refused(CheckpointError, tmp_path, checkpoints, exclude=["head.*"])
    assert "1 weight with no elements" in said
    assert names_of(planned(tmp_path, checkpoints, exclude=[{"pattern": "head.*", "drop": True}])) == {"w"}


def test_a_tensor_that_has_a_size_of_zero_in_every_model_is_merged_with_a_warning(tmp_path: Path) -> None:
    tensors = {"w": W, "extra.weight": torch.zeros(0, 3), "memory": torch.zeros(0)}
    plan = planned(tmp_path, {"base": tensors, "one": tensors})
    assert names_of(plan) == set(tensors)
    assert "extra.weight, memory: no elements in any model" in plan.warnings
