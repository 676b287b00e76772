"""What is compiled gives the bits that torch and numpy give."""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_cli.kernels import (
    compiled,
    disjoint_merge,
    drop,
    gather,
    grain_gram,
    keep_at_least,
    keep_mask,
    make_key,
    widen,
)
from merge_cli.kernels.quantile import Bracket, Tally

_LIBRARY = compiled.LIBRARY
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


def bits(result: Any) -> Any:
    return result.view(torch.int32).tolist() if isinstance(result, Tensor) else result


def either_way(do: Callable[[], Any]) -> tuple[Any, Any]:
    """Return what comes of it with the compiled kernels and without."""
    if _LIBRARY is None:
        pytest.skip("the kernels were not compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "LIBRARY", _LIBRARY)
        first = do()
        patch.setattr(compiled, "LIBRARY", None)
        return bits(first), bits(do())


@pytest.fixture(scope="module", autouse=True)
def _either() -> None:
    """Run once: here the two ways are compared."""


@settings(deadline=None)
@given(rows(), st.data())
def test_a_disjoint_merge(deltas: Tensor, data: st.DataObject) -> None:
    weights = data.draw(st.lists(WEIGHTS, min_size=len(deltas), max_size=len(deltas)))
    weighted = deltas * torch.tensor(weights)[:, None]
    for by, zero_sum, normalize in itertools.product(("mass", "count"), ("plus", "none"), (True, False)):
        with_, without = either_way(
            lambda by=by, zero_sum=zero_sum, normalize=normalize: disjoint_merge(  # type: ignore[misc]
                weighted.clone(), weights, by=by, zero_sum=zero_sum, normalize=normalize
            )
        )
        assert with_ == without


@settings(deadline=None)
@given(rows(), st.data())
def test_trimming(delta: Tensor, data: st.DataObject) -> None:
    thresholds = data.draw(
        st.lists(st.sampled_from([0.0, SMALLEST, 0.5, 1.0, LARGEST]), min_size=len(delta), max_size=len(delta))
    )
    factors = data.draw(st.lists(WEIGHTS, min_size=len(delta), max_size=len(delta)))
    with_, without = either_way(lambda: keep_at_least(delta, thresholds, factors))
    assert with_ == without


@settings(deadline=None)
@given(rows(), st.booleans(), st.sampled_from([torch.bfloat16, torch.float32]))
def test_widening(stored: Tensor, less: bool, dtype: torch.dtype) -> None:
    taken = stored[0].clone() if less else None

    def widened() -> Tensor:
        out = stored.clone()
        widen(out if dtype is torch.float32 else stored.to(dtype), out, taken)
        return out

    with_, without = either_way(widened)
    assert with_ == without


@settings(deadline=None)
@given(
    rows(),
    st.sampled_from([0, 1, 2, 3, 2**31 - 500, 2**32 - 600, 2**33 + 5]),
    st.sampled_from([0.0, 2**-40, 0.1, 0.3, 0.5, 0.9, 1 - 2**-40, 1.0]),
)
def test_masks_and_what_they_leave(row: Tensor, start: int, density: float) -> None:
    out, key = torch.empty(row.shape[1]), make_key(0, "w")
    with_, without = either_way(lambda: keep_mask(key, start, density, out.clone()))
    assert with_ == without
    with_, without = either_way(lambda: drop(row[0].clone(), key, start, density, out.clone()))
    assert with_ == without


@settings(deadline=None)
@given(rows(), st.sampled_from([(0.0, 0.5), (0.5, 0.5), (0.1, 3.0), (1.0, None), (0.0, None)]))
def test_looking_inside_a_bracket(drawn: Tensor, ends: tuple[float, float | None]) -> None:
    low, high = (2**31 if end is None else int(torch.tensor(end).view(torch.int32)) for end in ends)

    def found() -> tuple[int, list[int], list[int]]:
        tally = Tally(Bracket(1, low, max(high, low + 1)))
        for row in drawn:
            gather(tally.bracket, tally, row.clone())
        return tally.above, list(tally.inside), [] if tally.counts is None else tally.counts.tolist()

    with_, without = either_way(found)
    assert with_ == without


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 31, 32, 33, 16384, 16385, 40000]))
def test_inner_products_to_rounding(seed: int, numel: int) -> None:
    one, other = torch.randn(2, numel, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "LIBRARY", _LIBRARY)
        first = grain_gram(one, other)
        patch.setattr(compiled, "LIBRARY", None)
        second = grain_gram(one, other)
    # Against what is added up: sums of products may cancel.
    sizes = torch.stack([first[0], first[1], (first[0] * first[1]).sqrt()])
    assert bool(((first - second).abs() <= 1e-12 * sizes).all())


# --- whether there are any --------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="there is no C compiler")
def test_where_there_is_a_compiler_the_installation_has_compiled_them() -> None:
    assert _LIBRARY is not None


def test_source_and_signatures_are_of_one_version() -> None:
    source = Path(compiled.__file__).with_suffix(".c")
    if not source.exists():
        pytest.skip("an installed package, without the source")
    assert f"version = {compiled._VERSION};" in source.read_text()


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_VERSION", compiled._VERSION + 1)
    assert compiled._load() is None


@pytest.mark.parametrize(("value", "expected"), [("0", "False"), ("1", str(_LIBRARY is not None))])
def test_the_environment_can_ask_to_do_without(value: str, expected: str) -> None:
    program = "from merge_cli.kernels import compiled; print(compiled.LIBRARY is not None)"
    environment = {**os.environ, "MERGE_CLI_COMPILED": value}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == expected


def test_only_contiguous_float32_on_the_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LIBRARY", ctypes.CDLL(None))
    plain = torch.zeros(2, 4)
    assert compiled.can_take(plain, plain[0])
    for other in (plain.T, plain[:, ::2], plain.double(), plain.to(torch.bfloat16), plain.to("meta")):
        assert not compiled.can_take(plain, other)
