"""Numbers that are decoded, against their definition in float64, for every cut."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_cli.checkpoint import Reader, open_checkpoint
from merge_cli.stream.decode import is_finite, read_numbers, read_whole

FP8 = torch.float8_e4m3fn


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def save(folder: Path, state: dict[str, Tensor]) -> Path:
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def by_definition(stored: Tensor, scales: Tensor, tile: tuple[int, int]) -> Tensor:
    """Multiply every element with the scale of its tile, one after the other, exactly: both factors are short."""
    found = torch.empty(stored.shape, dtype=torch.float64)
    for at in np.ndindex(*stored.shape):
        row, column = (*(0,) * (2 - len(at)), *at)[-2:]
        scale = scales[*at[:-2], row // tile[0], column // tile[1]] if scales.numel() > 1 else scales.reshape(())
        found[at] = stored[at].double() * scale.double()
    return found


CASES = [
    ("weight_scale_inv", (7, 9), (1, 1), (128, 128)),
    ("weight_scale_inv", (130, 257), (2, 3), (128, 128)),
    ("weight_scale_inv", (3, 129, 4), (3, 2, 1), (128, 128)),
    ("weight_scale", (7, 9), (), (7, 9)),
    ("weight_scale", (7, 9), (1,), (7, 9)),
    ("weight_scale", (7, 9), (7, 1), (1, 9)),
    ("weight_scale", (3, 4, 5), (3, 4, 1), (1, 5)),
]


@pytest.mark.parametrize(("name", "shape", "scales", "tile"), CASES)
@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_scaled_float8_is_its_numbers_times_the_scales_of_their_tiles(
    name: str,
    shape: tuple[int, ...],
    scales: tuple[int, ...],
    tile: tuple[int, int],
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    # Scales of eight bits: the products then have no more bits than a float32 holds.
    state = {"a.weight": numbers(shape, dtype), f"a.{name}": numbers(scales, torch.bfloat16, 1)}
    checkpoint = open_checkpoint(save(tmp_path, state))
    with Reader(checkpoint.files) as reader:
        found = read_whole(checkpoint.tensors["a.weight"], reader)
    np.testing.assert_array_equal(found, by_definition(state["a.weight"], state[f"a.{name}"], tile).numpy())


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {"a.weight": numbers((260, 131), FP8), "a.weight_scale_inv": numbers((3, 2), torch.float32, 1)}
    return save(tmp_path_factory.mktemp("tiled"), state)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 260 * 131), count=st.integers(0, 700))
def test_a_run_is_the_same_wherever_it_is_cut(tiled: Path, start: int, count: int) -> None:
    checkpoint = open_checkpoint(tiled)
    source = checkpoint.tensors["a.weight"]
    count = min(count, source.numel - start)
    with Reader(checkpoint.files) as reader:
        whole = read_whole(source, reader).reshape(-1)
        part = read_numbers(source, start, count, reader)
    assert part.tobytes() == whole[start : start + count].tobytes()


def test_a_scale_that_is_no_number_is_found(tmp_path: Path) -> None:
    state = {"a.weight": numbers((4, 4), FP8), "a.weight_scale": torch.tensor([1.0, 2.0, torch.nan, 1.0])[:, None]}
    checkpoint = open_checkpoint(save(tmp_path, state))
    with Reader(checkpoint.files) as reader:
        assert not is_finite(checkpoint.tensors["a.weight"], reader)
