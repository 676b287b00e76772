"""The checkpoint package and transformers read what the other one wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from merge_cli.checkpoint import DType, Files, ShardWriter, Staging, open_checkpoint, plan_shards
from tests.checkpoint.helpers import assert_holds, raw_bytes


def tiny(*, tie: bool, seed: int = 0) -> Any:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tie, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def described(state: dict[str, torch.Tensor]) -> list[tuple[str, DType, tuple[int, ...]]]:
    return [(name, DType.BF16, tuple(tensor.shape)) for name, tensor in state.items()]


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("shard_size", "files"), [("5GB", 1), ("4KB", None)], ids=["one file", "sharded"])
def test_what_transformers_saved_is_opened(tie: bool, shard_size: str, files: int | None, tmp_path: Path) -> None:
    model = tiny(tie=tie)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    checkpoint = open_checkpoint(tmp_path)
    state = model.state_dict()
    if tie:
        del state["lm_head.weight"]
    assert_holds(checkpoint, state)
    assert len(checkpoint.files) >= 3 if files is None else len(checkpoint.files) == files
    assert checkpoint.config["tie_word_embeddings"] is tie
    assert checkpoint.metadata == {"format": "pt"}


@pytest.mark.parametrize("shard_bytes", [10**9, 4000], ids=["one file", "sharded"])
def test_what_is_written_here_is_loaded_by_transformers(shard_bytes: int, tmp_path: Path) -> None:
    model, out = tiny(tie=False, seed=1), tmp_path / "out"
    state = model.state_dict()
    layout = plan_shards(described(state), shard_bytes=shard_bytes, metadata={"format": "pt"})
    staging = Staging(out, force=False)
    with staging.open() as folder:
        with ShardWriter(folder, layout) as writer:
            for name, place in layout.targets.items():
                writer.write(memoryview(raw_bytes(state[name])), place, 0)
        index = layout.index()
        if index is not None:
            Files().write_new(folder / "model.safetensors.index.json", index, sync=False)
        model.config.save_pretrained(folder)
        staging.commit(sync=False)
    assert (len(layout.shards) > 3) == (shard_bytes == 4000)
    loaded, report = LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = loaded.state_dict()
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert raw_bytes(tensor) == raw_bytes(state[name])
    assert_holds(open_checkpoint(out), state)


def test_the_shards_and_their_index_are_those_that_transformers_writes(tmp_path: Path) -> None:
    model = tiny(tie=False)
    model.save_pretrained(tmp_path, max_shard_size=4000)
    theirs = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    layout = plan_shards(described(model.state_dict()), shard_bytes=4000, metadata={"format": "pt"})
    index = layout.index()
    assert index is not None
    assert json.loads(index) == theirs
