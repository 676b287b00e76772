import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from merge_cli.checkpoint import Checkpoint, Reader, model_identity, open_checkpoint, renamed
from merge_cli.checkpoint.views import Run, stacked
from merge_cli.errors import CheckpointError
from merge_cli.stream.decode import read_whole


@pytest.fixture
def opened(tmp_path: Path) -> Checkpoint:
    weight = torch.ones(2, 3)
    torch.save({"embed": weight, "head": weight, "norm": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    return open_checkpoint(tmp_path)


def test_renamed_tensors_are_found_by_their_new_names_and_know_their_old_ones(opened: Checkpoint) -> None:
    view = renamed(opened, {"embed": "model.embed", "head": "model.head", "absent": "x"}, "a note")
    assert set(view.tensors) == {"model.embed", "norm"}
    assert view.find("model.embed") is opened.tensors["embed"]
    assert view.find("model.head") is opened.tensors["embed"]
    assert view.find("embed") is None
    assert view.tensors["model.embed"].name == "embed"
    assert view.notes == ("a note",)
    assert opened.notes == ()


def test_a_model_stays_itself_under_other_names(opened: Checkpoint) -> None:
    view = renamed(opened, {"embed": "z", "norm": "a"}, "")
    assert model_identity(view) == model_identity(opened)


@pytest.mark.parametrize("names", [{"embed": "norm"}, {"embed": "x", "norm": "x"}, {"norm": "head"}])
def test_two_tensors_never_get_one_name(names: dict[str, str], opened: Checkpoint) -> None:
    with pytest.raises(ValueError, match="same name"):
        renamed(opened, names, "")


def model(folder: Path, layers: int, value: float, *, narrow: bool = False) -> Checkpoint:
    """A model of some layers; its numbers are ``value`` and, in layer i, i more."""
    folder.mkdir()
    dtype = torch.float8_e4m3fn if narrow else torch.float32
    state: dict[str, Tensor] = {"model.embed_tokens.weight": torch.full((3, 2), float(value))}
    for i in range(layers):
        state[f"model.layers.{i}.mlp.weight"] = torch.full((2, 2), float(value + i)).to(dtype)
        if narrow:
            state[f"model.layers.{i}.mlp.weight_scale"] = torch.full((1,), 0.5)
    state |= {"model.norm.weight": torch.full((2,), float(value)), "lm_head.weight": torch.full((3, 2), float(value))}
    if narrow:
        state["model.layers.0.mlp.input_scale"] = torch.ones(1)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    kinds = [f"{value:g}.{i}" for i in range(layers)]
    config = {
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "vocab_size": layers,
        "text_config": {"n_layer": layers},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def first_numbers(checkpoint: Checkpoint) -> Mapping[str, float]:
    with Reader(checkpoint.files) as reader:
        return {name: float(read_whole(tensor, reader).flat[0]) for name, tensor in checkpoint.tensors.items()}


def test_layers_are_stacked_in_the_order_of_the_runs(tmp_path: Path) -> None:
    low, high = model(tmp_path / "low", 3, 10), model(tmp_path / "high", 4, 100)
    view = stacked([Run(low, 0, 2), Run(high, 1, 4), Run(low, 2, 3)], label="both")
    assert first_numbers(view) == {
        "model.embed_tokens.weight": 10,
        "model.layers.0.mlp.weight": 10,
        "model.layers.1.mlp.weight": 11,
        "model.layers.2.mlp.weight": 101,
        "model.layers.3.mlp.weight": 102,
        "model.layers.4.mlp.weight": 103,
        "model.layers.5.mlp.weight": 12,
        "model.norm.weight": 10,
        "lm_head.weight": 10,
    }
    assert view.config == {
        "num_hidden_layers": 6,
        "layer_types": ["10.0", "10.1", "100.1", "100.2", "100.3", "10.2"],
        "vocab_size": 3,
        "text_config": {"n_layer": 6},
    }
    assert {file.path.parent.name for file in view.files} == {"low", "high"}


def test_what_follows_the_layers_comes_from_the_last_run(tmp_path: Path) -> None:
    low, high = model(tmp_path / "low", 2, 10), model(tmp_path / "high", 2, 100)
    found = first_numbers(stacked([Run(low, 0, 1), Run(high, 0, 1)], label="both"))
    assert (found["model.embed_tokens.weight"], found["model.norm.weight"], found["lm_head.weight"]) == (10, 100, 100)


def test_a_stack_of_scaled_float8_layers_holds_their_real_numbers(tmp_path: Path) -> None:
    narrow, wide = model(tmp_path / "narrow", 2, 8, narrow=True), model(tmp_path / "wide", 2, 100)
    view = renamed(stacked([Run(narrow, 0, 2), Run(wide, 0, 1)], label="x"), {"lm_head.weight": "head"}, "renamed")
    found = first_numbers(view)
    assert [found[f"model.layers.{i}.mlp.weight"] for i in range(3)] == [4, 4.5, 100]
    assert found["head"] == 100
    assert "lm_head.weight" not in found


@pytest.mark.parametrize(("first", "end"), [(0, 4), (2, 2), (-1, 2), (3, 5)])
def test_layers_that_a_model_has_not_are_refused(first: int, end: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"has 3 layers, the range is \[{first}, {end}\]"):
        stacked([Run(model(tmp_path / "m", 3, 1), first, end)], label="x")


def test_scales_that_go_with_no_tiles_are_refused(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "w.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
        "w.weight_scale_inv": torch.ones(3, 1),
    }
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"of shape \[3, 1\] scales no tiles of 'w.weight' of shape \[4, 4\]"):
        open_checkpoint(tmp_path)


def test_scales_of_activations_are_left_out_and_named(tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "narrow", 2, 8, narrow=True)
    assert set(checkpoint.tensors) == {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.weight",
        "model.layers.1.mlp.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    assert checkpoint.notes == (
        "float8 numbers (2 tensors) are multiplied with their scales; those of activations (1 tensor) are left out",
    )
