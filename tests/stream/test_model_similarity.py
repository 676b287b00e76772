"""Whether the models of a merge belong together; every expected number can be checked by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_cli.checkpoint import Files
from merge_cli.plan import build_plan
from merge_cli.run import merge
from merge_cli.stream import with_sample_warnings
from tests.checkpoints import recipe_over, write_checkpoint, write_header

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# The distance between neighbouring numbers of bfloat16 from 1 to 2.
STEP = 2.0**-7
ONES = torch.ones(64, 32)
# At right angles to ones, and to each other.
ODD = torch.tensor([1.0, -1.0]).repeat(1024).view(64, 32)
ODDER = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(512).view(64, 32)


def write(folder: Path, *, dtype: torch.dtype = F32, **tensors: Tensor | dict[str, Tensor]) -> None:
    for name, content in tensors.items():
        held = content if isinstance(content, dict) else {"layers.0.w": content}
        write_checkpoint(folder / name, {key: value.to(dtype) for key, value in held.items()})


def found(folder: Path, *models: str, method: str = "task_arithmetic", weight: float = 0.5, **recipe: Any) -> list[str]:
    """Return what looking at the numbers adds to the plan's warnings."""
    entries = [{"model": name, "parameters": {"weight": weight}} for name in models]
    content = {"merge_method": method, "models": entries, **recipe}
    if method != "linear":
        content["base_model"] = "base"
    plan = build_plan(recipe_over(folder, content))
    return list(with_sample_warnings(plan).warnings[len(plan.warnings) :])


def random(seed: int, rows: int = 64) -> Tensor:
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed))


# --- fine-tunes and strangers -----------------------------------------------------------------------------------------


def test_fine_tunes_of_the_base_are_no_reason_to_warn(tmp_path: Path) -> None:
    write(tmp_path, base=ONES, one=ONES + 0.1 * ODD, two=ONES + 0.49 * ODDER)
    assert found(tmp_path, "one", "two") == []


def test_a_delta_as_long_as_the_base_allows_no_fine_tune(tmp_path: Path) -> None:
    # Of equal right-angled parts 1 and 0.75 the cosine with the first is 1 / √(1 + 0.75²) = 0.8.
    write(tmp_path, base=ONES, one=ONES + 0.1 * ODD, two=ONES + 0.75 * ODD)
    (warning,) = found(tmp_path, "one", "two")
    assert warning == (
        "two does not look like a fine-tune of the base base: their difference has 0.75 times the norm of base "
        "(expected up to 0.5), and their cosine is 0.8 (expected from 0.89), on 2,048 sampled numbers; check base_model"
    )


def test_a_scaled_base_is_no_fine_tune_though_it_points_the_same_way(tmp_path: Path) -> None:
    write(tmp_path, base=ONES, one=1.6 * ONES)
    (warning,) = found(tmp_path, "one")
    assert "0.6 times the norm" in warning
    assert "cosine is 1 " in warning


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "slerp"])
def test_models_from_different_starts_are_told_apart(tmp_path: Path, method: str) -> None:
    # Of 32,768 numbers, of which 4,096 are looked at, the cosine of unrelated ones deviates from 0 by 1 / 64.
    write(tmp_path, base=random(0, 1024), one=random(1, 1024))
    parameters = {"parameters": {"t": 0.5}} if method == "slerp" else {}
    models = ["base", "one"] if method == "linear" else ["one"]
    (warning,) = found(tmp_path, *models, method=method, **parameters)
    numbers = re.search(r"has ([\d.]+) times.* cosine is (-?[\d.e-]+) ", warning)
    assert numbers is not None
    assert float(numbers[1]) == pytest.approx(2**0.5, abs=0.1)
    assert float(numbers[2]) == pytest.approx(0, abs=0.1)


def test_relatives_may_be_further_apart_where_there_is_no_base(tmp_path: Path) -> None:
    # Both half as long away from what they have in common: cosine 1 / 1.25 = 0.8, distance √(0.5 / 1.25) = 0.632.
    write(tmp_path, one=ONES + 0.49 * ODD, two=ONES + 0.49 * ODDER, far=ONES + 0.75 * ODDER)
    assert found(tmp_path, "one", "two", method="linear") == []
    # 1 / √(1.2401 · 1.5625) = 0.718, and √((0.49² + 0.75²) / 1.2401) = 0.804.
    (warning,) = found(tmp_path, "one", "far", method="linear")
    assert warning.startswith("far and one do not look like fine-tunes of one model: their difference has 0.804 times")
    assert "cosine is 0.718 (expected from 0.8)" in warning


def test_a_tensor_counts_by_its_size_and_not_by_its_sample(tmp_path: Path) -> None:
    # Ten parts of eleven stay 1 and one becomes 3: √(4 / 11) = 0.603, (10 + 3) / √(11 · (10 + 9)) = 0.899.
    large, small = torch.ones(1280, 32), torch.ones(128, 32)
    write(tmp_path, base={"large": large, "small": small}, one={"large": large, "small": 3 * small})
    (warning,) = found(tmp_path, "one")
    assert "0.603 times the norm" in warning
    assert "cosine is 0.899 " in warning


def test_too_few_numbers_say_nothing(tmp_path: Path) -> None:
    write(tmp_path, base=random(0)[:1], one=random(1)[:1])
    assert found(tmp_path, "one") == []


def test_zeros_and_damaged_numbers_are_left_to_the_merge(tmp_path: Path) -> None:
    damaged = ONES.clone()
    damaged[3] = float("nan")
    damaged[4] = float("inf")
    write(tmp_path, base=ONES, one=damaged, zero=0 * ONES)
    assert found(tmp_path, "one", "zero") == []


# --- equal models -----------------------------------------------------------------------------------------------------


def test_a_copy_of_the_base_is_told_of(tmp_path: Path) -> None:
    write(tmp_path, base={"w": ONES, "norm": ONES[0]}, one={"w": ONES + 0.1 * ODD, "norm": ONES[0]})
    write(tmp_path, copy={"w": ONES, "norm": ONES[0]})
    # 768 of the matrix's numbers, and all 32 of the vector's.
    assert found(tmp_path, "one", "copy") == [
        "copy equals the base base, so it has nothing to add: 800 sampled numbers of 2 tensors do not differ"
    ]


def test_a_copy_of_another_model_is_told_of_in_whatever_dtype(tmp_path: Path) -> None:
    write(tmp_path, base=ONES, one=ONES + 0.25 * ODD)
    write(tmp_path, two=ONES + 0.25 * ODD, dtype=F16)
    (warning,) = found(tmp_path, "one", "two")
    assert warning.startswith("two equals one, so the same counts twice: ")
    (warning,) = found(tmp_path, "one", "two", method="linear")
    assert warning.startswith("two equals one, so the same counts twice: ")


def test_a_model_that_differs_in_one_vector_is_no_copy(tmp_path: Path) -> None:
    write(tmp_path, base={"w": ONES, "norm": ONES[0]}, one={"w": ONES, "norm": ONES[0] + 0.1})
    assert found(tmp_path, "one") == []


def test_the_base_under_another_name_is_meant(tmp_path: Path) -> None:
    write(tmp_path, base=ONES, one=ONES + 0.1 * ODD)
    (tmp_path / "link").symlink_to(tmp_path / "base")
    assert found(tmp_path, "base", "one", method="linear") == []
    assert found(tmp_path, "base", "one", "link") == []
    assert (
        found(tmp_path, "base", "one", method="linear", base_model="base", prepare={"dare": {"drop_rate": 0.5}}) == []
    )


# --- precision --------------------------------------------------------------------------------------------------------


def test_a_delta_of_single_steps_is_near_rounding(tmp_path: Path) -> None:
    write(tmp_path, base=ONES, one=ONES + STEP * (ODD > 0), two=ONES + 4 * STEP, dtype=BF16)
    (warning,) = found(tmp_path, "one", "two")
    assert warning == (
        "what one learned is near the rounding of bfloat16: of the numbers that it changes, 100% differ from the "
        "base's by one step at most, on 2,048 sampled numbers; use checkpoints in float32 where there are"
    )


def test_a_few_single_steps_are_none(tmp_path: Path) -> None:
    # One step in half of the numbers, two in the other half.
    write(tmp_path, base=ONES, one=ONES + STEP * (1.5 + ODD / 2), dtype=BF16)
    assert found(tmp_path, "one", weight=1) == []


def test_a_small_delta_in_wide_numbers_is_held(tmp_path: Path) -> None:
    write(tmp_path, base=ONES, one=ONES + STEP * (ODD > 0))
    assert found(tmp_path, "one") == []


def test_a_wide_base_beside_a_narrow_model_is_near_the_models_rounding(tmp_path: Path) -> None:
    write(tmp_path, base=ONES + STEP / 3)
    write(tmp_path, one=ONES, dtype=BF16)
    (warning,) = found(tmp_path, "one", weight=1)
    assert "near the rounding of bfloat16" in warning


def test_a_merged_delta_that_rounds_away_is_told_of(tmp_path: Path) -> None:
    # 0.1 of four steps is 0.4 of one, which rounds to none.
    write(tmp_path, base=ONES, one=ONES + 4 * STEP, dtype=BF16)
    (warning,) = found(tmp_path, "one", weight=0.1)
    assert warning == (
        "the output's bfloat16 is too coarse for this merge: rounding changes the merged delta by 1 times its norm, "
        "and 100% of the numbers that it changes round to the base's, on 2,048 sampled numbers; give out_dtype: "
        "float32, or larger weights"
    )
    assert found(tmp_path, "one", weight=0.1, out_dtype="float32") == []
    assert found(tmp_path, "one", weight=0.5) == []
    assert found(tmp_path, "one", weight=0.1, parameters={"lambda": 5}) == []
    assert found(tmp_path, "one", weight=0.1, parameters={"normalize": True}) == []


def test_wide_models_written_in_narrow_numbers_are_measured_by_those(tmp_path: Path) -> None:
    write(tmp_path, base=ONES, one=ONES + 0.3 * STEP, two=ONES + 3 * STEP)
    (warning,) = found(tmp_path, "one", weight=1, dtype="bfloat16")
    assert "too coarse for this merge" in warning
    assert found(tmp_path, "two", weight=1, dtype="bfloat16") == []


# --- what it costs ----------------------------------------------------------------------------------------------------


class _Counting(Files):
    def __init__(self) -> None:
        self.nbytes = 0

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        self.nbytes += len(view)
        return super().pread(fd, view, offset)


@pytest.mark.parametrize("models", [2, 20])
def test_little_is_read_of_large_models(tmp_path: Path, models: int) -> None:
    """Even where all are equal, which takes a second look."""
    names = [f"m{i}" for i in range(models)]
    tensors = {f"layers.{i}.w": ("BF16", (8192, 8192), 2**27) for i in range(60)}
    for name in ["base", *names]:
        write_header(tmp_path / name / "model.safetensors", tensors)
    entries = [{"model": name, "parameters": {"weight": 0.1}} for name in names]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": entries}
    counting = _Counting()
    plan = build_plan(recipe_over(tmp_path, content))
    warnings = with_sample_warnings(plan, files=counting).warnings
    assert sum("equals the base" in warning for warning in warnings) == models
    # Two bytes each of a million numbers of the sample, and of 3 · 256 of 2,048 pairs of tensors in the second look.
    assert 0 < counting.nbytes <= 2 * 2**20 + 2 * 3 * 256 * 2 * 2048


def test_a_plan_that_was_looked_at_before_is_merged_without_looking_again(tmp_path: Path) -> None:
    write(tmp_path, base=ONES, one=ONES)
    content = {"merge_method": "ties", "base_model": "base", "models": [{"model": "one", "parameters": {"weight": 1}}]}
    once = with_sample_warnings(build_plan(recipe_over(tmp_path, content)))
    assert len(once.warnings) == 1
    report = merge(once, tmp_path / "out", sync=False, sample_warnings=False)
    assert report.warnings == once.warnings


# --- what is copied ---------------------------------------------------------------------------------------------------


INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def with_integers(folder: Path, name: str, integers: Tensor, *, at: str = "token_map") -> None:
    write_checkpoint(folder / name, {"layers.0.w": ONES + (0.1 * ODD if name == "one" else 0), at: integers})


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_that_differ_are_not_copied_without_a_word(dtype: torch.dtype, tmp_path: Path) -> None:
    same = torch.zeros(300_000, dtype=dtype)
    other = same.clone()
    other[-1] = 1
    with_integers(tmp_path, "base", same)
    with_integers(tmp_path, "one", other)
    assert found(tmp_path, "one") == [
        "token_map: whole numbers are not merged but copied from base; those of one are others"
    ]
    with_integers(tmp_path, "one", same)
    assert found(tmp_path, "one") == []


def test_without_a_base_integers_are_those_of_the_first_model(tmp_path: Path) -> None:
    for name, number in (("one", 1), ("two", 1), ("three", 2)):
        with_integers(tmp_path, name, torch.tensor([number]))
    said = [each for each in found(tmp_path, "one", "two", "three", method="linear") if "token_map" in each]
    assert said == ["token_map: whole numbers are not merged but copied from one; those of three are others"]


def test_integers_of_other_width_and_the_same_numbers_are_the_same(tmp_path: Path) -> None:
    with_integers(tmp_path, "base", torch.arange(9))
    with_integers(tmp_path, "one", torch.arange(9, dtype=torch.int16))
    assert found(tmp_path, "one") == []


@pytest.mark.parametrize("name", ["bn.num_batches_tracked", "embeddings.position_ids", "embeddings.token_type_ids"])
def test_counters_and_positions_may_differ(name: str, tmp_path: Path) -> None:
    with_integers(tmp_path, "base", torch.arange(9), at=name)
    with_integers(tmp_path, "one", torch.arange(9) + 1, at=name)
    assert found(tmp_path, "one") == []


def test_integers_that_the_recipe_excludes_may_differ(tmp_path: Path) -> None:
    with_integers(tmp_path, "base", torch.arange(9))
    with_integers(tmp_path, "one", torch.arange(9) + 1)
    assert found(tmp_path, "one", exclude=["token_map"]) == []
