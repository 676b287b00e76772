"""Every backend gives the same bits: compiled kernels, numpy, torch as on a GPU, torch on the CPU."""

import functools
import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_cli.kernels import (
    Backend,
    backend,
    backend_for,
    chunk_gram,
    chunk_sums,
    compiled,
    disjoint_merge,
    drop,
    elect_sign,
    from_float32,
    higher,
    keep_mask,
    kth_magnitude,
    lower,
    make_key,
    sum_models,
    to_float32,
    torch_backend,
    weighted_sum,
    zero_below,
)
from merge_cli.kernels.compiled import LIBRARY, CompiledBackend
from merge_cli.kernels.kth_magnitude import BracketCount, CountInBracket
from merge_cli.kernels.numpy_backend import NumpyBackend
from tests.kernels.floats import pattern_of

LARGEST, SMALLEST = torch.finfo(torch.float32).max, 2.0**-149
# Zeros of both signs, subnormal numbers, ties, sums that cancel and that overflow.
NUMBERS = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 0.1, -0.3, 3.0, SMALLEST, -SMALLEST, 1e-39, LARGEST, -LARGEST]
)
WEIGHTS = st.sampled_from([1.0, 0.5, 0.1, 0.0, -0.25, -1.0, 1e-9])
SIZES = st.sampled_from([1, 7, 8, 31, 511, 512, 513, 1300])


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Draw one to five rows: a few numbers chosen, and many at random."""
    n, numel, seed = draw(st.integers(1, 5)), draw(SIZES), draw(st.integers(0, 2**32))
    drawn = torch.randn(n, numel, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16).float()
    chosen = draw(st.lists(NUMBERS, max_size=6))
    for i, number in enumerate(chosen):
        drawn[i * 7 % n, i * 37 % numel] = number
    return drawn


Do = Callable[[Callable[[Tensor], Any]], Any]


def bits(result: Any) -> Any:
    if isinstance(result, np.ndarray):
        return result.view(np.uint8).tolist()
    return bits(result.view(torch.uint8).numpy()) if isinstance(result, Tensor) else result


def every_way(do: Do) -> list[Any]:
    """Return what comes of it compiled and in numpy, for numpy's arrays and for torch's tensors, and in torch alone.

    Args:
        do: Given what makes an array of a tensor; must not change the tensor.
    """
    found = []
    for cpu in [NumpyBackend(), *([CompiledBackend(LIBRARY)] if LIBRARY is not None else [])]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "CPU", cpu)
            found += [bits(do(lambda tensor: tensor.clone().numpy())), bits(do(Tensor.clone))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_backend, "_is_shared", lambda tensor: False)
        return [*found, bits(do(Tensor.clone))]


def agree(found: list[Any]) -> bool:
    return all(each == found[0] for each in found)


@pytest.fixture(scope="module", autouse=True)
def which() -> None:
    """Run once: here the ways are compared."""


@settings(deadline=None)
@given(rows(), st.data())
def test_a_disjoint_merge(deltas: Tensor, data: st.DataObject) -> None:
    weights = data.draw(st.lists(WEIGHTS, min_size=len(deltas), max_size=len(deltas)))
    weighted = deltas * torch.tensor(weights)[:, None]
    for by, zero_sum, normalize in itertools.product(("mass", "count"), ("plus", "none"), (True, False)):
        merge = functools.partial(
            disjoint_merge,
            weights=weights,
            by=by,
            zero_sum=zero_sum,
            normalize=normalize,  # type: ignore[arg-type]
        )
        assert agree(every_way(lambda made, merge=merge: merge(made(weighted))))  # type: ignore[misc]


@settings(deadline=None)
@given(rows(), st.data())
def test_a_weighted_sum(models: Tensor, data: st.DataObject) -> None:
    weights = data.draw(st.lists(WEIGHTS, min_size=len(models), max_size=len(models)))
    assert agree(every_way(lambda made: weighted_sum(made(models), weights)))


@settings(deadline=None)
@given(rows(), st.data())
def test_trimming(delta: Tensor, data: st.DataObject) -> None:
    thresholds = data.draw(
        st.lists(
            st.sampled_from([0.0, SMALLEST, 0.5, 1.0, LARGEST, math.inf]), min_size=len(delta), max_size=len(delta)
        )
    )
    factors = data.draw(st.lists(WEIGHTS, min_size=len(delta), max_size=len(delta)))
    assert agree(every_way(lambda made: zero_below(made(delta), thresholds, factors)))


@settings(deadline=None)
@given(rows())
def test_signs_sums_and_bounds(drawn: Tensor) -> None:
    assert agree(every_way(lambda made: sum_models(made(drawn))))
    assert agree(every_way(lambda made: lower(made(drawn[0]), made(drawn[-1]))))
    assert agree(every_way(lambda made: higher(made(drawn[0]), made(drawn[-1]))))
    for by, zero_sum in itertools.product(("mass", "count"), ("plus", "none")):
        elect = functools.partial(elect_sign, by=by, zero_sum=zero_sum)  # type: ignore[arg-type]
        assert agree(every_way(lambda made, elect=elect: elect(made(drawn))))  # type: ignore[misc]


FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@settings(deadline=None)
@given(rows(), st.booleans(), st.sampled_from(FLOATS))
def test_casts_to_float32(numbers: Tensor, less: bool, dtype: torch.dtype) -> None:
    name, stored = str(dtype).removeprefix("torch."), numbers.clamp(-448, 448).to(dtype)

    def cast(made: Callable[[Tensor], Any]) -> Any:
        out = made(numbers)
        held = pattern_of(stored) if isinstance(out, np.ndarray) else stored
        wrong = to_float32(held, name, out, made(numbers[0]) if less else None)
        return wrong, bits(out)

    assert agree(every_way(cast))


@settings(deadline=None)
@given(rows(), st.booleans())
def test_float32_in_place(numbers: Tensor, less: bool) -> None:
    def cast(made: Callable[[Tensor], Any]) -> Any:
        out = made(numbers)
        return to_float32(out, "float32", out, made(numbers[0]) if less else None), bits(out)

    assert agree(every_way(cast))


@settings(deadline=None)
@given(rows(), st.sampled_from(FLOATS))
def test_casts_from_float32(drawn: Tensor, dtype: torch.dtype) -> None:
    name, numbers = str(dtype).removeprefix("torch."), drawn.clamp(-448, 448)

    def cast(made: Callable[[Tensor], Any]) -> Any:
        row, out = made(numbers[0]), torch.zeros(numbers.shape[1], dtype=dtype)
        # A tensor's memory is that of the array of its patterns.
        wrong = from_float32(row, name, pattern_of(out) if isinstance(row, np.ndarray) else out)
        return wrong, bits(pattern_of(out))

    assert agree(every_way(cast))


@settings(deadline=None)
@given(
    rows(),
    st.sampled_from([0, 1, 2, 3, 2**31 - 500, 2**32 - 600, 2**33 + 5]),
    st.sampled_from([0.0, 2**-40, 0.1, 0.3, 0.5, 0.9, 1 - 2**-40, 1.0]),
)
def test_masks_and_what_they_leave(row: Tensor, start: int, density: float) -> None:
    key = make_key(0, "w")
    assert agree(every_way(lambda made: keep_mask(key, start, density, made(row[0]))))
    assert agree(every_way(lambda made: drop(made(row[0]), key, start, density, made(row[0]))))


@settings(deadline=None)
@given(rows(), st.sampled_from([(0.0, 0.5), (0.5, 0.5), (0.1, 3.0), (1.0, None), (0.0, None)]))
def test_looking_inside_a_bracket(drawn: Tensor, ends: tuple[float, float | None]) -> None:
    low, high = (2**31 if end is None else int(torch.tensor(end).view(torch.int32)) for end in ends)

    def found(made: Callable[[Tensor], Any]) -> tuple[int, list[int], list[int]]:
        count = BracketCount(CountInBracket(1, low, max(high, low + 1)))
        for row in drawn:
            kth_magnitude.update(count.bracket, count, made(row))
        return count.above, list(count.inside), [] if count.counts is None else count.counts.tolist()

    assert agree(every_way(found))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 31, 32, 33, 16384, 16385, 40000]))
def test_sums_over_elements_to_rounding(seed: int, numel: int) -> None:
    one, other = torch.randn(2, numel, generator=torch.Generator().manual_seed(seed))
    for sums in (
        lambda made: chunk_gram(made(one), made(other)).tolist(),
        lambda made: chunk_sums(made(torch.stack([one, other]))).tolist(),
    ):
        first, *others = (torch.tensor(each) for each in every_way(sums))
        for each in others:
            # Of the size of what is added up: sums may cancel.
            assert bool(((first - each).abs() <= 1e-12 * 16384).all())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 31, 32, 33, 16384, 16385]))
def test_inner_products_are_the_same_on_the_cpu_and_added_as_documented(seed: int, numel: int) -> None:
    one, other = torch.randn(2, numel, generator=torch.Generator().manual_seed(seed))
    expected = []
    for at in range(0, numel, 16384):
        lanes = [[0.0] * 32 for _ in range(3)]
        for j, (p, q) in enumerate(zip(one[at : at + 16384].tolist(), other[at : at + 16384].tolist(), strict=True)):
            for sums, product in zip(lanes, (p * p, q * q, p * q), strict=True):
                sums[j % 32] += product
        # sum() of floats compensates from Python 3.12 on.
        expected.append([functools.reduce(float.__add__, sums, 0.0) for sums in lanes])
    for cpu in [NumpyBackend(), *([CompiledBackend(LIBRARY)] if LIBRARY is not None else [])]:
        assert cpu.chunk_gram(one.numpy(), other.numpy(), 16384).T.tolist() == expected


# --- which one does the work ------------------------------------------------------------------------------------------

switched_off = pytest.mark.skipif(os.environ.get("MERGE_CLI_COMPILED") == "0", reason="the environment asks for none")


def test_a_device_has_one_backend() -> None:
    cpu = backend_for("cpu")
    assert (cpu.name, cpu.compiled) == ("cpu", LIBRARY is not None)
    assert isinstance(cpu.empty((2, 3)), np.ndarray)
    assert (cpu.empty((2, 3)).shape, cpu.column([1, 2]).tolist()) == ((2, 3), [[1.0], [2.0]])
    there = backend_for("meta")
    assert (there.name, there.compiled) == ("torch", False)
    assert (there.empty((2, 3)).shape, there.empty((2, 3)).device.type) == ((2, 3), "meta")


@pytest.mark.parametrize("name", sorted(each for each in vars(Backend) if not each.startswith("_")))
def test_every_backend_has_every_kernel(name: str) -> None:
    for each in (NumpyBackend, CompiledBackend, torch_backend.TorchBackend, torch_backend.SharedBackend):
        assert callable(getattr(each, name))


def test_only_contiguous_float32_in_memory_is_shared_with_the_cpu_backend() -> None:
    plain, cpu = torch.zeros(2, 4), NumpyBackend()
    for shared in (plain, plain[0]):
        assert isinstance(torch_backend.backend_of(shared, cpu), torch_backend.SharedBackend)
    for other in (plain.T, plain[:, ::2], plain.double(), plain.to(torch.bfloat16), plain.to("meta")):
        assert type(torch_backend.backend_of(other, cpu)) is torch_backend.TorchBackend


@switched_off
@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="there is no C compiler")
def test_where_there_is_a_compiler_the_installation_has_compiled_them() -> None:
    assert LIBRARY is not None


def test_source_and_calls_are_of_one_version() -> None:
    header = Path(compiled.__file__).with_suffix(".h")
    if not header.exists():
        pytest.skip("an installed package, without the source")
    assert f"KERNELS_VERSION = {compiled._VERSION} " in header.read_text()


def loads(monkeypatch: pytest.MonkeyPatch, raising: Exception | None = None) -> tuple[Any, str]:
    """Return what there is to use where the library is there and as it should be, or importing it fails."""

    def imported(name: str) -> Any:
        if raising is not None:
            raise raising
        return LIBRARY

    monkeypatch.delenv("MERGE_CLI_COMPILED", raising=False)
    monkeypatch.setattr(compiled, "import_module", imported)
    return compiled._load()


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if LIBRARY is None:
        pytest.skip("the kernels were not compiled")
    assert loads(monkeypatch) == (LIBRARY, "")
    monkeypatch.setattr(compiled, "_VERSION", compiled._VERSION + 1)
    assert loads(monkeypatch) == (None, "built from another version; install merge-cli again")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ModuleNotFoundError("No module named x", name="_merge_cli_compiled"), "not built, for want of a C compiler"),
        (ModuleNotFoundError("No module named '_cffi_backend'", name="_cffi_backend"), "not usable: No module named"),
        (ImportError("undefined symbol: PyX"), "not usable: undefined symbol: PyX"),
    ],
)
def test_a_library_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch, error: Exception, why: str) -> None:
    library, said = loads(monkeypatch, error)
    assert library is None
    assert why in said


@switched_off
@pytest.mark.parametrize(("value", "expected"), [("0", "False"), ("1", str(LIBRARY is not None))])
def test_the_environment_can_ask_to_do_without(value: str, expected: str) -> None:
    program = "from merge_cli.kernels import backend_for; print(backend_for('cpu').compiled)"
    environment = {**os.environ, "MERGE_CLI_COMPILED": value}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == expected


def test_arrays_that_compiled_kernels_would_misread_are_refused() -> None:
    if LIBRARY is None:
        pytest.skip("the kernels were not compiled")
    cpu, short, long, apart = (
        CompiledBackend(LIBRARY),
        np.zeros(3, np.float32),
        np.zeros(4, np.float32),
        np.zeros(8, np.float32)[::2],
    )
    for wrong in (
        lambda: cpu.weighted_sum([long, short], [1.0, 1.0]),
        lambda: cpu.chunk_gram(long, short, 2),
        lambda: cpu.draw(short, (1, 2, 3, 4), 0, 9, 0, long),
        lambda: cpu.zero_below(short, 0.0, 1.0, long),
        lambda: cpu.from_float32(short, "bfloat16", np.zeros(4, np.uint16)),
        lambda: cpu.to_float32(short[None].view(np.uint16), "bfloat16", None, long[None]),
        lambda: cpu.to_float32(rows, "float32", short, rows) if (rows := long[None]) is not None else None,
    ):
        with pytest.raises(ValueError, match="different shapes"):
            wrong()
    for wrong in (lambda: cpu.zero_below(long, 0.0, 1.0, apart), lambda: cpu.in_bracket(apart, 0.0, 1.0)):
        with pytest.raises(ValueError, match="not C-contiguous"):
            wrong()
    for wide in (long.astype(np.float64), long.view(np.int32)):
        with pytest.raises(TypeError, match="float"):
            cpu.chunk_gram(wide, wide, 2)  # type: ignore[arg-type]
