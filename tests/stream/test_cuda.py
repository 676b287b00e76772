"""The same method code on a GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from merge_cli.methods.contract import Params
from merge_cli.run import merge
from tests.checkpoints import read_checkpoint
from tests.stream.families import every_method, planned, recipe_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize(("name", "params"), every_method())
def test_a_gpu_gives_what_the_processor_gives(family: Path, tmp_path: Path, name: str, params: Params) -> None:
    plan = planned(family, recipe_for(name, params, dtype="float32"), device="cpu", threads=2)
    wanted = merge(plan, tmp_path / "cpu", sync=False)
    found = merge(replace(plan, device="cuda"), tmp_path / "cuda", sync=False)
    assert found.device.startswith("cuda")
    assert found.counts == wanted.counts
    expected = read_checkpoint(tmp_path / "cpu")
    for tensor, value in read_checkpoint(tmp_path / "cuda").items():
        # Random masks and thresholds are the same to the bit, so nothing differs by more than rounding.
        assert torch.allclose(value.double(), expected[tensor].double(), rtol=1e-5, atol=1e-6), tensor


def test_blocks_do_not_change_a_byte_there_either(family: Path, tmp_path: Path) -> None:
    models = [{"model": name, "parameters": {"weight": 1, "density": 0.5}} for name in ("one", "two")]
    plan = planned(family, {"merge_method": "dare_ties", "base_model": "base", "models": models}, device="cuda")
    contents = []
    for i, (numel, threads) in enumerate([(16384, 1), (81920, 2)]):
        merge(replace(plan, block_numel=numel, threads=threads), tmp_path / str(i), sync=False)
        contents.append((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]
