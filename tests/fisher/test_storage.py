"""Where the sums of an unfinished measurement lie."""

import shutil
from pathlib import Path

import torch

from merge_cli.fisher.storage import hold_folder, load_state, save_state


def test_a_folder_in_which_nothing_was_saved_goes_again(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "f.measuring") as folder:
        (folder / "part-0.safetensors.new").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_what_was_saved_stays(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "f.measuring") as folder:
        save_state(folder / "part-0.safetensors", {"w": torch.tensor([1.0, 2.0])}, {"seen": "2"})
    tensors, metadata = load_state(tmp_path / "f.measuring" / "part-0.safetensors")
    assert tensors["w"].tolist() == [1.0, 2.0]
    assert metadata["seen"] == "2"


def test_a_folder_that_another_measurement_has_made_since_is_left_to_it(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "f.measuring") as folder:
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / ".lock").touch()
    assert (tmp_path / "f.measuring" / ".lock").exists()
