"""What a script sees when something goes wrong, and what a person reads."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from merge_cli import errors
from merge_cli.errors import MergeError
from tests.checkpoints import write_checkpoint
from tests.cli.conftest import Run, listing


def test_done_is_zero(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    assert run("plan", "r.yml").code == 0


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    kinds: list[type[MergeError]] = [
        errors.RecipeError,
        errors.CheckpointError,
        errors.ResourceError,
        errors.VerificationError,
    ]
    kinds += [errors.WriteError, errors.BusyError, errors.Interrupted]
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 5, 6, 75, 130]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["merge", "nowhere.yml", "out"], "cannot read the recipe nowhere.yml"),
        (["merge", "r.yml", "out", "--set", "parameters.lamda=2"], "ties has no such parameter"),
        (["merge", "r.yml", "out", "--set", "dtype=bfloat"], "did you mean 'bfloat16'?"),
        (["merge", "r.yml", "out", "--set", "seed"], "expected place=value"),
        (["merge", "r.yml", "out", "--device", "tpu"], "--device tpu: expected auto, cpu or cuda[:N]"),
        (["plan", "r.yml", "--device", "cpus"], "--device cpus: expected auto, cpu or cuda[:N]"),
        (["methods", "tie"], "did you mean 'ties'?"),
        (["merge", "r.yml", "out", "--memory", "lots"], "'lots' is not a size"),
        (["plan", "r.yml", "--shard-size", "-1"], "'-1' is not a size"),
        (["merge", "r.yml", "out", "--threads", "0"], "threads"),
        (["merge", "r.yml"], "OUT"),
        (["merge", "r.yml", "out", "--thread", "2"], "--thread"),
        (["marge", "r.yml", "out"], "marge"),
        ([], ""),
    ],
)
def test_wrong_usage_and_wrong_recipes_are_two(run: Run, folder: Path, arguments: list[str], says: str) -> None:
    before = listing(folder)
    done = run(*arguments)
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err
    assert listing(folder) == before


def test_an_unusable_input_is_three(run: Run, folder: Path) -> None:
    done = run("merge", "r.yml", "out", "--set", "models.0.model=./nowhere")
    assert done.code == 3
    assert done.err.startswith("error: './nowhere' does not exist\n  hint: looked for ")
    (folder / "one" / "model.safetensors").write_bytes(b"x")
    done = run("plan", "r.yml")
    assert done.code == 3
    assert "is not a sound safetensors file" in done.err
    assert run("inspect", "one").code == 3


def test_too_little_memory_is_four_and_says_how_much_it_takes(run: Run, folder: Path) -> None:
    done = run("merge", "r.yml", "out", "--memory", "100B")
    assert done.code == 4
    assert "--memory allows 100 B" in done.err
    assert "hint: give --memory 1MiB or more" in done.err
    assert run("merge", "r.yml", "out", "--memory", "1MiB").code == 0


def test_too_little_disk_is_four(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 1000, 0))
    before = listing(folder)
    done = run("merge", "r.yml", "out")
    assert done.code == 4
    assert "has 0 B free, the output takes" in done.err
    assert listing(folder) == before


def test_an_output_that_is_not_finite_is_five(run: Run, folder: Path) -> None:
    before = listing(folder)
    done = run("merge", "r.yml", "out", "--set", "parameters.lambda=1e6", "--set", "dtype=float16")
    assert done.code == 5
    assert "of the output holds NaN or infinity" in done.err
    assert "hint: float16 may be too narrow for it" in done.err
    assert listing(folder) == before


def test_an_input_that_is_not_finite_is_three_and_may_be_allowed(run: Run, folder: Path) -> None:
    write_checkpoint(folder / "one", {"layers.0.w": [[float("nan")] * 3] * 4, "ids": [0]})
    write_checkpoint(folder / "base", {"layers.0.w": [[float("nan")] * 3] * 4, "ids": [0]})
    single = ["--set", "models=[{model: one}]", "--set", "base_model=base", "--set", "parameters.weight=1"]
    assert run("merge", "r.yml", "out", *single).code == 3
    # It reaches the output, and there it is never allowed.
    assert run("merge", "r.yml", "out", *single, "--allow-nonfinite").code == 5
    copied = [*single, "--set", "exclude=[layers.*]"]
    assert run("merge", "r.yml", "out", *copied).code == 3
    assert run("merge", "r.yml", "out", *copied, "--allow-nonfinite").code == 0


def test_running_out_of_memory_is_four(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merge_cli.run.merge", _raising(MemoryError()))
    done = run("merge", "r.yml", "out")
    assert done.code == 4
    assert "out of memory" in done.err


def test_a_bug_keeps_its_stack_trace(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merge_cli.run.merge", _raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("merge", "r.yml", "out")


def _raising(error: BaseException) -> Any:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    return fail


def test_a_message_says_where_and_ends_with_one_hint(run: Run, folder: Path) -> None:
    (folder / "r.yml").write_text(
        "merge_method: ties\nbase_model: base\nmodels: [{model: one}]\nparameters:\n  denisty: 1\n"
    )
    assert run("merge", "r.yml", "out").err == (
        "error: r.yml:5: parameters.denisty: ties has no such parameter\n"
        "  hint: did you mean 'density'? ties takes density, elect, lambda, normalize, trim, weight, zero_sum\n"
    )


def test_an_error_without_a_hint_is_one_line() -> None:
    assert str(MergeError("a thing went wrong")) == "a thing went wrong"
