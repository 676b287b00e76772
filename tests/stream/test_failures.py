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

from merge_cli.checkpoint import Files
from merge_cli.errors import CheckpointError, MergeError, RecipeError, ResourceError, VerificationError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import examined, merge
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
    assert "--allow-nonfinite" in str(error.hint)


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
    plan = examined(planned(tmp_path, [1.0, 2.0], options={"threads": 3}))

    def failing(block: Any, params: Any) -> Any:
        raise raised("in the method")

    monkeypatch.setitem(plan.__dict__, "method", replace(plan.method, merge=failing))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(raised, match="in the method"):
        merge(plan, tmp_path / "out", sync=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("device", ["cuda:99", "cuda:99999999999", "meta", "tpu"])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str) -> None:
    error = refused(planned(tmp_path, [1.0, 2.0], options={"device": device}))
    assert isinstance(error, RecipeError)
    assert f"--device {device}" in error.message
