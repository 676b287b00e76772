"""What is compiled gives the bits that torch and numpy give."""

import ctypes
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
    compiled,
    disjoint_merge,
    drop,
    gather,
    grain_gram,
    grain_sums,
    keep_at_least,
    keep_mask,
    make_key,
    weighted_sum,
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


Do = Callable[[Callable[[Tensor], Any]], Any]


def bits(result: Any) -> Any:
    if isinstance(result, np.ndarray):
        return result.view(np.int32).tolist()
    return result.view(torch.int32).tolist() if isinstance(result, Tensor) else result


def every_way(do: Do) -> list[Any]:
    """Return what comes of it with compiled kernels for numpy's arrays, and for torch's tensors, and without.

    Args:
        do: Given what makes an array of a tensor; must not change the tensor.
    """
    if _LIBRARY is None:
        pytest.skip("the kernels were not compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "LIBRARY", _LIBRARY)
        found = [bits(do(lambda tensor: tensor.clone().numpy())), bits(do(Tensor.clone))]
        patch.setattr(compiled, "LIBRARY", None)
        return [*found, bits(do(Tensor.clone))]


def agree(found: list[Any]) -> bool:
    return all(each == found[0] for each in found)


@pytest.fixture(scope="module", autouse=True)
def _either() -> None:
    """Run once: here the two ways are compared."""


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
    assert agree(every_way(lambda made: keep_at_least(made(delta), thresholds, factors)))


@settings(deadline=None)
@given(rows(), st.booleans(), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_widening(numbers: Tensor, less: bool, dtype: torch.dtype) -> None:
    name, stored = str(dtype).removeprefix("torch."), numbers.to(dtype)

    def widened(made: Callable[[Tensor], Any]) -> Any:
        out = made(numbers)
        if dtype is torch.float32:
            held = out
        else:
            held = stored.view(torch.uint16).numpy() if isinstance(out, np.ndarray) else stored
        wrong = widen(held, name, out, made(numbers[0]) if less else None)
        return wrong, bits(out)

    assert agree(every_way(widened))


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
        tally = Tally(Bracket(1, low, max(high, low + 1)))
        for row in drawn:
            gather(tally.bracket, tally, made(row))
        return tally.above, list(tally.inside), [] if tally.counts is None else tally.counts.tolist()

    assert agree(every_way(found))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 31, 32, 33, 16384, 16385, 40000]))
def test_sums_over_elements_to_rounding(seed: int, numel: int) -> None:
    one, other = torch.randn(2, numel, generator=torch.Generator().manual_seed(seed))
    for sums in (
        lambda made: grain_gram(made(one), made(other)).tolist(),
        lambda made: grain_sums(made(torch.stack([one, other]))).tolist(),
    ):
        first, *others = (torch.tensor(each) for each in every_way(sums))
        for each in others:
            # Of the size of what is added up: sums may cancel.
            assert bool(((first - each).abs() <= 1e-12 * 16384).all())


switched_off = pytest.mark.skipif(os.environ.get("MERGE_CLI_COMPILED") == "0", reason="the environment asks for none")

# --- whether there are any --------------------------------------------------------------------------------------------


@switched_off
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


@switched_off
@pytest.mark.parametrize(("value", "expected"), [("0", "False"), ("1", str(_LIBRARY is not None))])
def test_the_environment_can_ask_to_do_without(value: str, expected: str) -> None:
    program = "from merge_cli.kernels import compiled; print(compiled.LIBRARY is not None)"
    environment = {**os.environ, "MERGE_CLI_COMPILED": value}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == expected


def test_only_contiguous_float32_on_the_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LIBRARY", ctypes.CDLL(None))
    plain = torch.zeros(2, 4)
    assert compiled.can_take(plain, plain[0], plain.numpy())  # type: ignore[arg-type]
    assert not compiled.can_take(plain.numpy().T)
    assert not compiled.can_take(plain.double().numpy())
    for other in (plain.T, plain[:, ::2], plain.double(), plain.to(torch.bfloat16), plain.to("meta")):
        assert not compiled.can_take(plain, other)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    if _LIBRARY is None:
        pytest.skip("the kernels were not compiled")
    short, long = np.zeros(3, np.float32), np.zeros(4, np.float32)
    for wrong in (
        lambda: compiled.weighted_sum([long, short], [1.0, 1.0]),
        lambda: compiled.gram(long, short, 2),
        lambda: compiled.drop(short, (1, 2, 3, 4), 0, 9, 0, long),
        lambda: compiled.trim(short, 0.0, 1.0, long),
        lambda: compiled.narrow(short, "bfloat16", np.zeros(4, np.uint16)),
        lambda: compiled.widen(short[None].view(np.uint16), "bfloat16", None, long[None]),
        lambda: compiled.widen(long[None], "float32", short, long[None]),
    ):
        with pytest.raises(ValueError, match="different shapes"):
            wrong()
