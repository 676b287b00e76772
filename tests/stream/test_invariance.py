"""The same bytes whatever the block size, the workers, the shards and the memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli.kernels import GRAIN, backend
from merge_cli.kernels.compiled import LIBRARY
from merge_cli.kernels.numpy_backend import NumpyBackend
from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import Params
from merge_cli.plan import MergePlan
from merge_cli.run import merge
from merge_cli.testing import typical_params
from tests.checkpoints import read_checkpoint, write_checkpoint
from tests.crash.cases import contents
from tests.stream.families import N, every_method, planned, recipe_for

# (elements per block, workers, whether these are processes)
CUTS = [(GRAIN, 1, False), (GRAIN, 3, False), (5 * GRAIN, 2, False), (64 * GRAIN, 1, False), (GRAIN, 3, True)]

PREPARED: dict[str, dict[str, Any]] = {
    "dare": {"dare": {"drop_rate": 0.5}},
    "dare with l1": {"dare": {"drop_rate": 0.5, "rescale": "l1"}},
    "largest of each tensor": {"keep_largest": {"density": 0.2}},
    "largest of the model": {"keep_largest": {"density": 0.2, "scope": "model"}},
    "dare, then largest of the model": {
        "dare": {"drop_rate": 0.3, "rescale": "l1"},
        "keep_largest": {"density": 0.4, "scope": "model"},
    },
    "largest of the model, then dare": {
        "keep_largest": {"density": 0.4, "scope": "model"},
        "dare": {"drop_rate": 0.3, "rescale": "l1"},
    },
    "dare, then largest of each tensor": {
        "dare": {"drop_rate": 0.3},
        "keep_largest": {"density": 0.4, "scope": "tensor"},
    },
}


def results(plan: MergePlan, folder: Path) -> list[tuple[dict[str, bytes], Any]]:
    """Return the bytes of every file of the output and what was counted, for every cut."""
    found = []
    for i, (numel, threads, processes) in enumerate(CUTS):
        cut = replace(plan, block_numel=numel, threads=threads)
        report = merge(cut, folder / str(i) / "out", sync=False, processes=processes)
        found.append((contents(folder / str(i) / "out"), report.counts))
    return found


@pytest.mark.parametrize(("name", "params"), every_method())
def test_blocks_and_workers_do_not_change_a_byte(family: Path, tmp_path: Path, name: str, params: Params) -> None:
    first, *others = results(planned(family, recipe_for(name, params)), tmp_path)
    for other in others:
        assert other == first


@pytest.mark.skipif(LIBRARY is None, reason="the kernels were not compiled")
@pytest.mark.parametrize(("name", "params"), every_method())
def test_compiled_kernels_do_not_change_a_byte(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, params: Params
) -> None:
    plan = planned(family, recipe_for(name, params))
    report = merge(plan, tmp_path / "compiled" / "out", sync=False)
    monkeypatch.setattr(backend, "CPU", NumpyBackend())
    assert merge(plan, tmp_path / "not" / "out", sync=False).counts == report.counts
    assert contents(tmp_path / "not" / "out") == contents(tmp_path / "compiled" / "out")


@pytest.mark.parametrize("steps", PREPARED)
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {"density": 0.3, "trim": "model"}),
        ("ties", {"density": 0.3, "trim": "tensor"}),
        ("linear", {}),
        ("fisher", {}),
        ("dare_ties", {"density": 0.5, "rescale": "l1"}),
    ],
    ids=["ties of the model", "ties of each tensor", "linear", "fisher", "dare_ties"],
)
def test_neither_do_they_behind_preparing_steps(
    family: Path, tmp_path: Path, method: str, parameters: dict[str, Any], steps: str
) -> None:
    models = [
        {"model": name, "fisher": f"fisher-{name}", "parameters": {"weight": weight}}
        for name, weight in (("one", 1), ("two", 0.5))
    ]
    recipe = {"merge_method": method, "base_model": "base", "models": models, "parameters": parameters}
    first, *others = results(planned(family, {**recipe, "prepare": PREPARED[steps], "seed": 5}), tmp_path)
    for other in others:
        assert other == first


@pytest.mark.parametrize("shard_size", [1, 30_000, 700_000])
def test_shards_hold_the_same_tensors(family: Path, tmp_path: Path, shard_size: int) -> None:
    models = [{"model": name, "parameters": {"weight": 1, "density": 0.5}} for name in ("one", "two")]
    recipe = {"merge_method": "dare_ties", "base_model": "base", "models": models}
    merge(planned(family, recipe), tmp_path / "one file", sync=False)
    merge(planned(family, recipe, shard_size=shard_size), tmp_path / "shards", sync=False)
    wanted, found = read_checkpoint(tmp_path / "one file"), read_checkpoint(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert wanted.keys() == found.keys()
    assert all(_same(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("name", method_names())
def test_shards_threads_and_memory_do_not_change_a_tensor_of_any_method(
    family: Path, tmp_path: Path, name: str
) -> None:
    method = find_method(name)
    recipe = recipe_for(name, typical_params(method.params, min(N, method.models[1] or N))[0])
    merge(planned(family, recipe, threads=2), tmp_path / "one file", sync=False)
    wanted = read_checkpoint(tmp_path / "one file")
    for i, (shard_size, threads, memory) in enumerate([(1, 3, 2**23), (300_000, 1, 2**31)]):
        plan = planned(family, recipe, shard_size=shard_size, threads=threads, memory=memory)
        merge(plan, tmp_path / str(i), sync=False)
        found = read_checkpoint(tmp_path / str(i))
        assert len(list((tmp_path / str(i)).glob("*.safetensors"))) > 1
        assert wanted.keys() == found.keys()
        assert all(_same(wanted[tensor], found[tensor]) for tensor in wanted)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize(("memory", "threads"), [("least", 1), ("least", 4), ("much", 2)])
def test_neither_does_the_memory_budget(family: Path, tmp_path: Path, memory: str, threads: int) -> None:
    models = [{"model": name, "parameters": {"weight": 1, "density": 0.5}} for name in ("one", "two", "three")]
    recipe = {"merge_method": "ties", "base_model": "base", "models": models}
    plan = planned(family, recipe, threads=threads)
    merge(plan, tmp_path / "default", sync=False)
    each = plan.buffer_bytes // plan.block_numel // plan.threads
    budget = GRAIN * each if memory == "least" else 2**31
    other = planned(family, recipe, threads=threads, memory=budget)
    assert other.buffer_bytes <= budget
    merge(other, tmp_path / "other", sync=False)
    files = [tmp_path / name / "model.safetensors" for name in ("default", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_sharded_input_gives_what_a_single_file_gives(family: Path, tmp_path: Path) -> None:
    tensors = read_checkpoint(family / "one")
    write_checkpoint(tmp_path / "one", tensors, shards=3)
    contents = []
    for i, model in enumerate([str(family / "one"), str(tmp_path / "one")]):
        models = [{"model": model, "parameters": {"weight": 0.5}}]
        recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
        merge(planned(family, recipe), tmp_path / f"out{i}", sync=False)
        contents.append((tmp_path / f"out{i}" / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_another_seed_gives_other_bytes(family: Path, tmp_path: Path) -> None:
    models = [{"model": name, "parameters": {"weight": 1, "density": 0.5}} for name in ("one", "two")]
    recipe = {"merge_method": "dare_linear", "base_model": "base", "models": models}
    contents = set()
    for seed in (0, 0, 1):
        merge(planned(family, {**recipe, "seed": seed}), tmp_path / "out", sync=False, force=True)
        contents.add((tmp_path / "out" / "model.safetensors").read_bytes())
    assert len(contents) == 2
