"""Wrappers' prefixes, which are taken off the names of tensors where that is certain."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from merge_cli.checkpoint import model_identity, open_checkpoint
from merge_cli.errors import CheckpointError
from tests.checkpoint.helpers import assert_holds, filled

PLAIN = {"model.embed.weight": filled(torch.float32, (4, 2)), "model.layers.0.up.weight": filled(torch.float32, (3, 2))}


def saved(folder: Path, state: dict[str, Tensor], *, pickled: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    ("before", "taken"),
    [
        ("_orig_mod.", "_orig_mod."),
        ("module.", "module."),
        ("_orig_mod.module.", "_orig_mod. and module."),
        ("module._orig_mod.", "_orig_mod. and module."),
        ("module.module.", "module."),
        ("_fsdp_wrapped_module.", "_fsdp_wrapped_module."),
        ("base_model.model.", "base_model.model."),
        ("_forward_module.", "_forward_module."),
    ],
)
def test_a_prefix_that_every_name_has_is_taken_off_and_named(
    before: str, taken: str, pickled: bool, tmp_path: Path
) -> None:
    state = {before + name: tensor for name, tensor in PLAIN.items()}
    checkpoint = open_checkpoint(saved(tmp_path, state, pickled=pickled))
    assert_holds(checkpoint, PLAIN)
    assert [tensor.name for tensor in checkpoint.tensors.values()] == list(checkpoint.tensors)
    assert checkpoint.notes == (
        f"{taken} taken off the names of its tensors, which a wrapper around the model put there",
    )


def test_wrappers_of_single_layers_are_taken_out_of_the_middle_of_names(tmp_path: Path) -> None:
    state = {
        "layers.0._orig_mod._checkpoint_wrapped_module.weight": torch.ones(2, 2),
        "layers.1._fsdp_wrapped_module.up._checkpoint_wrapped_module.weight": torch.ones(3),
        "norm.weight": torch.ones(1),
    }
    assert set(open_checkpoint(saved(tmp_path, state)).tensors) == {
        "layers.0.weight",
        "layers.1.up.weight",
        "norm.weight",
    }


@pytest.mark.parametrize("name", ["module.a.weight", "base_model.model.a.weight"])
def test_a_part_of_the_model_that_is_called_like_a_wrapper_keeps_its_name(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, {name: torch.ones(2), "head.weight": torch.ones(2)}))
    assert set(checkpoint.tensors) == {name, "head.weight"}
    assert checkpoint.notes == ()


@pytest.mark.parametrize("name", ["my_orig_mod.weight", "a.module.weight", "_orig_mod", "a_fsdp_wrapped_module.w"])
def test_a_name_that_only_holds_the_letters_of_a_wrapper_stays(name: str, tmp_path: Path) -> None:
    assert list(open_checkpoint(saved(tmp_path, {name: torch.ones(2)})).tensors) == [name]


def test_names_that_are_one_without_the_prefix_are_refused(tmp_path: Path) -> None:
    state = {"_orig_mod.a.weight": torch.ones(2), "a.weight": torch.ones(2)}
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(saved(tmp_path, state))
    assert "'_orig_mod.a.weight'" in caught.value.message
    assert "'a.weight'" in caught.value.message
    assert "without a wrapper's prefix are one" in caught.value.message


def test_tied_tensors_stay_tied_under_their_plain_names(tmp_path: Path) -> None:
    weight = torch.ones(2, 3)
    checkpoint = open_checkpoint(saved(tmp_path, {"module.embed": weight, "module.head": weight}, pickled=True))
    assert checkpoint.tied == {"head": "embed"}
    assert checkpoint.find("head") is checkpoint.tensors["embed"]


def test_a_model_is_the_same_one_with_and_without_its_wrapper(tmp_path: Path) -> None:
    wrapped = saved(tmp_path / "wrapped", {f"_orig_mod.{name}": tensor for name, tensor in PLAIN.items()})
    plain = saved(tmp_path / "plain", PLAIN)
    assert model_identity(open_checkpoint(wrapped)) == model_identity(open_checkpoint(plain))


def test_what_data_parallelism_makes_of_names_is_known(tmp_path: Path) -> None:
    layer = nn.Linear(2, 3)
    assert_holds(open_checkpoint(saved(tmp_path, dict(nn.DataParallel(layer).state_dict()))), dict(layer.state_dict()))


def test_an_index_names_tensors_as_the_shards_do(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in PLAIN.items()}
    saved(tmp_path, state)
    names = ", ".join(f'"{name}": "model.safetensors"' for name in state)
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{names}}}}}')
    assert set(open_checkpoint(tmp_path).tensors) == set(PLAIN)
