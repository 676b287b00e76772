"""Methods that must see whole rows, or whole tensors: cut by each tensor's own shape, whatever the memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import merge_cli.methods as methods
from merge_cli.checkpoint import DType
from merge_cli.checkpoint.header import encode_header
from merge_cli.errors import ResourceError
from merge_cli.kernels import GRAIN, weighted_sum
from merge_cli.methods.contract import Block, Diagnosis, Input, Method, Params, Scope
from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint

# Widths that share no factor with each other or with a grain, and one wider than many a block.
SHAPES = {
    "narrow": (50_000, 7),
    "odd": (301, 503),
    "wide": (3, 30_011),
    "even": (64, 1024),
    "stack": (3, 50, 129),
    "vector": (1000,),
    "scalar": (),
}


class Nothing(Params):
    """No parameters."""


def softmax_rows(block: Block, _: Params) -> Any:
    """Return the softmax of each row of the average: needs all of a row, and rounds in ways that depend on its cut."""
    rows = np.asarray(weighted_sum(block.models, [1 / block.n] * block.n)).reshape(-1, (block.shape or (1,))[-1])
    block.add("mass", rows.reshape(-1))
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)


def normalised(block: Block, _: Params) -> Any:
    """Return the average of a tensor over its norm."""
    average = np.asarray(weighted_sum(block.models, [1 / block.n] * block.n))
    assert average.shape == (np.prod(block.shape, dtype=int),)
    return average / np.float32(np.sqrt(np.square(average, dtype=np.float64).sum()))


def matrices_only(params: Params, shape: tuple[int, ...]) -> Scope:
    return Scope.TENSOR if len(shape) == 2 and shape[0] < 100_000 else Scope.ELEMENT


def method(merge: Any, scope: Any) -> Method:
    return Method(
        merge=merge,
        params=Nothing,
        needs=lambda params, given: frozenset({Input.MODELS}),
        summary="for a test",
        equation="none",
        source="a test",
        scope=scope,
        diagnose=lambda sums, measured, params: Diagnosis(dict(sums)),
        numpy=True,
    )


BY_ROWS = method(softmax_rows, lambda params, shape: Scope.ROW)
BY_TENSOR = method(normalised, lambda params, shape: Scope.TENSOR)


@pytest.fixture
def pair(tmp_path: Path) -> list[dict[str, Tensor]]:
    found = []
    for number in range(2):
        source = torch.Generator().manual_seed(number)
        tensors = {name: torch.randn(shape, generator=source) for name, shape in SHAPES.items()}
        write_checkpoint(tmp_path / f"m{number}", tensors)
        found.append(tensors)
    return found


def planned(monkeypatch: pytest.MonkeyPatch, folder: Path, used: Method, **options: Any) -> MergePlan:
    monkeypatch.setattr(methods, "find_method", lambda name: used)
    for module in ("merge_cli.plan.model", "merge_cli.plan.build", "merge_cli.recipe.schema"):
        monkeypatch.setattr(f"{module}.find_method", lambda name: used, raising=False)
    recipe = {"merge_method": "linear", "models": [{"model": "m0"}, {"model": "m1"}], "out_dtype": "float32"}
    return build_plan(recipe_over(folder, recipe), **options)


def expected(used: Method, tensors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    averages = {name: (tensors[0][name].double() + tensors[1][name].double()) / 2 for name in SHAPES}
    if used is BY_TENSOR:
        return {name: average / average.norm() for name, average in averages.items()}
    return {name: average.reshape(-1, SHAPES[name][-1] if SHAPES[name] else 1).softmax(1).reshape(SHAPES[name])
            for name, average in averages.items()}  # fmt: skip


@pytest.mark.parametrize("used", [BY_ROWS, BY_TENSOR], ids=["rows", "tensors"])
def test_whole_rows_and_tensors_give_the_same_bytes_at_every_budget(
    used: Method, pair: list[dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows of 30,011 numbers come together only after all three; the largest tensor has 350,000. 56 bytes each.
    least = 56 * (3 * 30_011 if used is BY_ROWS else 350_000)
    blocks, contents, sums = set(), set(), set()
    for i, (memory, threads) in enumerate([(least, 1), (least * 4, 2), (2**27, 1)]):
        plan = planned(monkeypatch, tmp_path, used, memory=memory, threads=threads)
        assert plan.buffer_bytes <= memory
        blocks.add(plan.block_of(next(task for task in plan.tasks if task.target.name == "narrow")))
        report = merge(plan, tmp_path / f"out{i}", sync=False)
        contents.add((tmp_path / f"out{i}/model.safetensors").read_bytes())
        sums.add(report.diagnostics.get("mass"))
    assert len(contents) == 1
    assert len(sums) == 1
    assert len(blocks) > 1 or used is BY_TENSOR
    found = read_checkpoint(tmp_path / "out0")
    for name, want in expected(used, pair).items():
        torch.testing.assert_close(found[name].double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("target", [GRAIN, 12 * GRAIN, 100 * GRAIN])
def test_blocks_of_rows_begin_where_a_row_and_a_vector_of_lanes_begin(
    target: int, pair: list[dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(monkeypatch, tmp_path, BY_ROWS)
    object.__setattr__(plan, "block_numel", target)
    for task in plan.tasks:
        numel, columns = task.target.numel, (task.target.shape or (1,))[-1]
        block = plan.block_of(task)
        assert block == numel or (block % columns == 0 and block % 64 == 0)


def write_header_only(folder: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """Write a checkpoint of zeros that takes no space: a header, and a hole."""
    entries: dict[str, Any] = {}
    end = 0
    for name, (rows, columns) in shapes.items():
        size = rows * columns * DType.BF16.itemsize
        entries[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [end, end + size]}
        end += size
    header = encode_header(entries)
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(header)
    os.truncate(path, len(header) + end)


def test_an_embedding_that_is_merged_by_elements_does_not_size_the_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"model.embed_tokens.weight": (152_064, 3584), "model.layers.0.mlp.up_proj.weight": (2048, 3584)}
    for name in ("m0", "m1"):
        write_header_only(tmp_path / name, shapes)
    whole = method(normalised, matrices_only)
    plan = planned(monkeypatch, tmp_path, whole, memory=2**31, threads=2)
    embedding, matrix = plan.tasks
    assert plan.block_of(matrix) == 2048 * 3584
    assert plan.block_of(embedding) < 2**20
    # Two workers with a float32 matrix of each model, as much again for temporaries, and what is read and written.
    assert plan.threads == 2
    assert plan.buffer_bytes < 2 * 2048 * 3584 * 80
    with pytest.raises(ResourceError, match="a block of 544997376 elements of 2 models takes"):
        planned(monkeypatch, tmp_path, BY_TENSOR, memory=2**31, threads=2)


def test_a_method_declares_what_its_temporaries_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m0", "m1"):
        write_header_only(tmp_path / name, {"w": (2048, 2048)})
    sizes = []
    for floats in (1.0, 11.0):
        used = method(normalised, lambda params, shape: Scope.TENSOR)
        object.__setattr__(used, "workspace", lambda params, n, floats=floats: floats * n)
        sizes.append(planned(monkeypatch, tmp_path, used, memory=2**31, threads=1).buffer_bytes)
    # Ten more numbers of four bytes for each of two models and each element.
    assert sizes[1] - sizes[0] == 2048 * 2048 * 10 * 2 * 4
