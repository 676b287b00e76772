from pathlib import Path

import pytest
import torch

from merge_cli.checkpoint import Checkpoint, model_identity, open_checkpoint, renamed


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
