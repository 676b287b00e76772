"""What goes wrong on the way is named, raised once, and leaves nothing behind."""

import errno
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merge_cli.checkpoint import Files
from merge_cli.errors import CheckpointError, MergeError, RecipeError, ResourceError, VerificationError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from merge_cli.stream import with_sample_warnings
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint


def planned(
    folder: Path, one: Any, *, base: Any = (0.0, 0.0), options: dict[str, Any] | None = None, **recipe: Any
) -> MergePlan:
    """Plan the merge of one model onto a base."""
    write_checkpoint(folder / "base", {"a": [1.0] * 100, "w": torch.as_tensor(base)})
    write_checkpoint(folder / "one", {"a": [1.0] * 100, "w": torch.as_tensor(one)})
    models = [{"model": "one", "parameters": {"weight": 1}}]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": models, **recipe}
    return build_plan(recipe_over(folder, content), **(options or {}))


def refused(plan: MergePlan, **options: Any) -> MergeError:
    """Return the error of a merge of which nothing is left."""
    folder = plan.inputs[0].root.parent
    before = sorted(path.name for path in folder.iterdir())
    threads = threading.active_count()
    with pytest.raises(MergeError) as caught:
        merge(plan, folder / "out", sync=False, **options)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert threading.active_count() == threads
    return caught.value


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_an_input_that_is_not_finite_is_named_with_its_file(tmp_path: Path, wrong: float, dtype: torch.dtype) -> None:
    plan = planned(tmp_path, torch.tensor([1.0, wrong]).to(dtype), base=torch.zeros(2, dtype=dtype))
    error = refused(plan)
    assert isinstance(error, CheckpointError)
    assert error.message == f"'w' in {tmp_path}/one/model.safetensors holds NaN or infinity"
    assert error.hint == (
        "the checkpoint is damaged or training diverged; put this into the recipe to copy the tensor from base:\n"
        "exclude: ['w']"
    )


def pasted(plan: MergePlan, hint: str | None) -> MergePlan:
    """Plan again with the last line of a hint in the recipe."""
    recipe = plan.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    content = recipe | yaml.safe_load(str(hint).splitlines()[-1])
    return build_plan(recipe_over(plan.inputs[0].root.parent, content), allow_nonfinite=plan.allow_nonfinite)


@pytest.mark.parametrize("allow_nonfinite", [False, True])
@pytest.mark.parametrize("given", [[], ["a"], [{"pattern": "it's", "from": "one"}, {"pattern": "a", "drop": True}]])
def test_a_merge_goes_through_with_the_exclusion_that_an_error_on_nan_gives(
    tmp_path: Path, given: list[Any], allow_nonfinite: bool
) -> None:
    name = "layers.0.[w]*"
    for model, number in (("base", 2.0), ("one", math.nan)):
        write_checkpoint(tmp_path / model, {"a": [1.0], "it's": [1.0], name: [number], "layers.0.w*": [number]})
    write_checkpoint(tmp_path / "one", {"a": [1.0], "it's": [4.0], name: [math.nan], "layers.0.w*": [4.0]})
    models = [{"model": "one", "parameters": {"weight": 1}}]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": models, "exclude": given}
    plan = build_plan(recipe_over(tmp_path, content), allow_nonfinite=allow_nonfinite)
    error = refused(plan)
    assert isinstance(error, VerificationError if allow_nonfinite else CheckpointError)
    assert ("in place of the recipe's exclude" in str(error.hint)) == bool(given)
    merge(pasted(plan, error.hint), tmp_path / "out", sync=False)
    merged = read_checkpoint(tmp_path / "out")
    assert merged[name].tolist() == [2.0]
    assert merged["layers.0.w*"].tolist() == [4.0]
    assert merged["it's"].tolist() == [4.0]
    assert ("a" in merged) == ({"pattern": "a", "drop": True} not in given)


def test_a_tensor_that_is_not_finite_in_the_base_is_to_be_copied_from_a_model_where_it_is(tmp_path: Path) -> None:
    plan = planned(tmp_path, [3.0, 4.0], base=[math.nan, 0.0])
    error = refused(plan)
    assert "to copy the tensor from one, that of base holding NaN or infinity too:\n" in str(error.hint)
    merge(pasted(plan, error.hint), tmp_path / "out", sync=False)
    assert read_checkpoint(tmp_path / "out")["w"].tolist() == [3.0, 4.0]


def test_a_tensor_that_is_finite_nowhere_can_only_be_copied_as_it_is(tmp_path: Path) -> None:
    plan = planned(tmp_path, [math.nan, 4.0], base=[math.nan, 5.0], options={"allow_nonfinite": True})
    error = refused(plan)
    assert "no model of the recipe has this tensor without NaN or infinity" in str(error.hint)
    merge(pasted(plan, error.hint), tmp_path / "out", sync=False)
    assert read_checkpoint(tmp_path / "out")["w"][1].item() == 5.0


def test_infinities_that_cancel_are_not_overlooked(tmp_path: Path) -> None:
    assert "holds NaN or infinity" in refused(planned(tmp_path, [math.inf, -math.inf])).message


def test_finite_numbers_whose_sum_overflows_are_fine(tmp_path: Path) -> None:
    merge(planned(tmp_path, [3e38, 3e38]), tmp_path / "out", sync=False)
    assert read_checkpoint(tmp_path / "out")["w"].tolist() == torch.tensor([3e38, 3e38]).tolist()


def test_a_base_that_is_not_finite_is_named_too(tmp_path: Path) -> None:
    assert "base/model.safetensors holds NaN" in refused(planned(tmp_path, [1.0, 1.0], base=[0.0, math.nan])).message


def test_float64_beyond_float32_counts_as_not_finite(tmp_path: Path) -> None:
    one, base = torch.tensor([1e300, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert "'w' in" in refused(planned(tmp_path, one, base=base)).message


def test_allowed_or_not_the_output_is_never_other_than_finite(tmp_path: Path) -> None:
    plan = planned(tmp_path, [1.0, math.nan], options={"allow_nonfinite": True})
    error = refused(plan)
    assert isinstance(error, VerificationError)
    assert "'w' of the output holds NaN or infinity" in error.message


def test_what_is_not_finite_may_be_copied_where_it_is_allowed(tmp_path: Path) -> None:
    base, options = [math.nan, math.inf], {"allow_nonfinite": True}
    merge(planned(tmp_path, [5.0, 2.0], base=base, options=options, exclude=["w"]), tmp_path / "out", sync=False)
    found = read_checkpoint(tmp_path / "out")["w"].tolist()
    assert math.isnan(found[0])
    assert math.isinf(found[1])


def test_a_copied_tensor_that_is_not_finite_is_refused_unless_allowed(tmp_path: Path) -> None:
    error = refused(planned(tmp_path, [1.0, 1.0], base=[math.nan, 0.0], exclude=["w"]))
    assert isinstance(error, CheckpointError)
    assert error.message == f"'w' in {tmp_path}/base/model.safetensors holds NaN or infinity"
    assert "--allow-nonfinite copies it as it is" in str(error.hint)


def test_a_result_too_large_for_the_output_is_an_error_with_a_hint(tmp_path: Path) -> None:
    error = refused(planned(tmp_path, [1e6, 0.0], dtype="float16"))
    assert isinstance(error, VerificationError)
    assert error.exit_code == 5
    assert error.message.startswith("'w' of the output holds NaN or infinity")
    assert "float16 may be too narrow for it; choose a wider out_dtype" in str(error.hint)


def test_a_copy_too_large_for_the_output_is_an_error_too(tmp_path: Path) -> None:
    error = refused(planned(tmp_path, [0.0, 0.0], base=[1e6, 0.0], exclude=["w"], dtype="float16"))
    assert isinstance(error, VerificationError)
    assert "float16 may be too narrow" in str(error.hint)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_overflows_like_any_other(tmp_path: Path, dtype: str) -> None:
    assert isinstance(refused(planned(tmp_path, [1e6, 0.0], dtype=dtype)), VerificationError)
    assert isinstance(refused(planned(tmp_path, [0.0, 0.0], base=[-1e6, 0.0], exclude=["w"], dtype=dtype)), MergeError)


def test_the_largest_number_of_a_float8_is_in_its_range(tmp_path: Path) -> None:
    merge(planned(tmp_path, [-448.0, 460.0], dtype="float8_e4m3fn"), tmp_path / "out", sync=False)
    assert read_checkpoint(tmp_path / "out")["w"].float().tolist() == [-448, 448]


def test_a_negative_fisher_is_no_fisher(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "fisher", {"a": [2.0] * 100, "w": [1.0, -1e-30]}, config=None)
    models = [{"model": "one", "fisher": "fisher", "parameters": {"weight": 1}}]
    error = refused(planned(tmp_path, [1.0, 2.0], merge_method="fisher", models=models))
    assert isinstance(error, CheckpointError)
    assert "'w' in" in error.message
    assert "fisher/model.safetensors has negative entries, which no Fisher diagonal has" in error.message


@pytest.mark.parametrize("anchor", ["base", "none"])
def test_a_negative_fisher_of_the_base_is_none_either(tmp_path: Path, anchor: str) -> None:
    good, bad = {"a": [2.0] * 100, "w": [1.0, 1.0]}, {"a": [-1.0] * 100, "w": [1.0, 1.0]}
    write_checkpoint(tmp_path / "fisher", good, config=None, metadata={"train_examples": "1"})
    write_checkpoint(tmp_path / "fisher-base", bad, config=None, metadata={"train_examples": "1"})
    models = [{"model": "one", "fisher": "fisher", "parameters": {"weight": 1}}]
    recipe = {"merge_method": "gradient_matching", "models": models, "parameters": {"anchor": anchor}}
    error = refused(planned(tmp_path, [1.0, 2.0], base_fisher="fisher-base", **recipe))
    assert "fisher-base/model.safetensors has negative entries" in error.message


def test_a_file_that_has_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    plan = planned(tmp_path, [1.0, 2.0])
    write_checkpoint(tmp_path / "one", {"a": [2.0] * 101, "w": [1.0, 2.0]})
    assert "has changed since the merge was planned" in refused(plan).message


class Failing(Files):
    """Lets a call fail once it was made a number of times."""

    def __init__(self, call: str, after: int, number: int) -> None:
        self.call, self.left, self.number = call, after, number
        self._lock = threading.Lock()

    def _count(self, call: str) -> None:
        with self._lock:
            self.left -= call == self.call
            if call == self.call and self.left < 0:
                raise OSError(self.number, os.strerror(self.number))

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        self._count("pread")
        return super().pread(fd, view, offset)

    def pwrite(self, fd: int, view: memoryview, offset: int) -> int:
        self._count("pwrite")
        return super().pwrite(fd, view, offset)

    def reserve(self, fd: int, size: int) -> None:
        self._count("reserve")
        super().reserve(fd, size)

    def rename(self, old: Path, new: Path) -> None:
        self._count("rename")
        super().rename(old, new)


@pytest.mark.parametrize(
    ("call", "after", "number", "kind"),
    [
        ("pread", 1, errno.EIO, CheckpointError),
        ("pwrite", 1, errno.EIO, ResourceError),
        ("pwrite", 0, errno.ENOSPC, ResourceError),
        ("reserve", 0, errno.ENOSPC, ResourceError),
        ("reserve", 1, errno.ENOSPC, ResourceError),
        ("rename", 0, errno.EACCES, ResourceError),
    ],
)
def test_a_system_that_fails_leaves_nothing_behind(
    tmp_path: Path, call: str, after: int, number: int, kind: type[MergeError]
) -> None:
    error = refused(planned(tmp_path, [1.0, 2.0]), files=Failing(call, after, number))
    assert isinstance(error, kind)
    assert os.strerror(number) in error.message


@pytest.mark.parametrize("raised", [ZeroDivisionError, KeyboardInterrupt, MemoryError])
def test_a_bug_in_a_method_keeps_its_kind_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    plan = with_sample_warnings(planned(tmp_path, [1.0, 2.0], options={"threads": 3}))

    def failing(block: Any, params: Any) -> Any:
        raise raised("in the method")

    monkeypatch.setitem(plan.__dict__, "method", replace(plan.method, merge=failing))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(raised, match="in the method"):
        merge(plan, tmp_path / "out", sync=False, sample_warnings=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("device", ["cuda:99", "cuda:99999999999", "meta", "tpu"])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str) -> None:
    error = refused(planned(tmp_path, [1.0, 2.0], options={"device": device}))
    assert isinstance(error, RecipeError)
    assert f"--device {device}" in error.message
