"""Numbers that are decoded, against their definition in float64, for every cut."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from merge_cli.checkpoint import Reader, open_checkpoint
from merge_cli.kernels.torch_backend import TorchBackend
from merge_cli.stream.decode import decode_rows, is_finite, read_whole
from merge_cli.testing import check_source

FP8 = torch.float8_e4m3fn
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


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


def test_a_source_keeps_the_rules_wherever_it_is_cut(tmp_path: Path) -> None:
    scaled = numbers((260, 131), FP8), numbers((3, 2), torch.float32, 1)
    state = {"a.weight": scaled[0], "a.weight_scale_inv": scaled[1]}
    state |= {name: numbers((5, 77), dtype) for name, dtype in DTYPES.items()}
    checkpoint = open_checkpoint(save(tmp_path, state))
    with Reader(checkpoint.files) as reader:
        check_source(checkpoint.tensors["a.weight"], reader, expected=by_definition(*scaled, (128, 128)).numpy())
        for name in DTYPES:
            check_source(checkpoint.tensors[name], reader, expected=state[name].double().numpy())


def test_a_scale_that_is_no_number_is_found(tmp_path: Path) -> None:
    state = {"a.weight": numbers((4, 4), FP8), "a.weight_scale": torch.tensor([1.0, 2.0, torch.nan, 1.0])[:, None]}
    checkpoint = open_checkpoint(save(tmp_path, state))
    with Reader(checkpoint.files) as reader:
        assert not is_finite(checkpoint.tensors["a.weight"], reader)


class Elsewhere(TorchBackend):
    """A backend whose arrays are not in the memory of this machine, as far as anybody is told."""

    def shared(self, array: Tensor) -> None:
        return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, FP8])
def test_rows_on_a_device_hold_what_rows_in_memory_hold(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"a.weight": numbers((4, 50), dtype), "b.weight": numbers((4, 50), dtype, 1)}
    expected = torch.stack([tensor.float() for tensor in state.values()])
    if dtype is FP8:
        scales = numbers((4, 1), torch.float32, 2)
        state |= {f"{name}_scale": scales.clone() for name in list(state)}
        expected *= scales
    checkpoint = open_checkpoint(save(tmp_path, state))
    sources = [checkpoint.tensors["a.weight"], checkpoint.tensors["b.weight"]]
    less = torch.linspace(-1, 1, 60)
    backend = Elsewhere("cpu")
    with Reader(checkpoint.files) as reader:
        rows = backend.empty((2, 60))
        raw = backend.staging(2 * 60 * 8)
        wrong = decode_rows(sources, 70, rows, reader=reader, raw=raw, backend=backend, less=less)
    assert wrong == [0, 0]
    assert torch.equal(rows, expected.reshape(2, -1)[:, 70:130] - less)
