"""Thresholds of vectors that are too long to be held, or merged from very many models."""

from pathlib import Path

import torch

from merge_cli.plan import build_plan
from merge_cli.run import merge
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint


def test_the_largest_entries_of_a_very_long_vector_are_kept_exactly(tmp_path: Path) -> None:
    numel, density = 2**24 + 12_345, 0.2
    source = torch.Generator().manual_seed(1)
    delta = torch.randn(numel, generator=source).to(torch.bfloat16)
    write_checkpoint(tmp_path / "base", {"w": torch.zeros(numel, dtype=torch.bfloat16)})
    write_checkpoint(tmp_path / "one", {"w": delta})
    models = [{"model": "one", "parameters": {"weight": 1, "density": density}}]
    recipe = {"merge_method": "ties", "base_model": "base", "models": models}
    merge(build_plan(recipe_over(tmp_path, recipe)), tmp_path / "out", sync=False)
    magnitude = delta.abs().float()
    threshold = magnitude.kthvalue(numel - int(density * numel) + 1).values
    wanted = torch.where(magnitude >= threshold, delta, torch.zeros_like(delta))
    assert torch.equal(read_checkpoint(tmp_path / "out")["w"], wanted)


def test_very_many_models_are_trimmed_like_one(tmp_path: Path) -> None:
    numel, n = 250_000, 70
    source = torch.Generator().manual_seed(2)
    delta = torch.randn(numel, generator=source)
    write_checkpoint(tmp_path / "base", {"w": torch.zeros(numel)})
    write_checkpoint(tmp_path / "one", {"w": delta})
    models = [{"model": "one", "parameters": {"weight": 1, "density": 0.5}}] * n
    recipe = {"merge_method": "ties", "base_model": "base", "models": models}
    merge(build_plan(recipe_over(tmp_path, recipe)), tmp_path / "out", sync=False)
    kept = delta.abs() >= delta.abs().sort(descending=True).values[numel // 2 - 1]
    assert torch.allclose(read_checkpoint(tmp_path / "out")["w"], delta * kept, rtol=1e-5)
