"""What ``merge-cli verify`` takes and says."""

import os
from pathlib import Path
from typing import Any

import pytest

from merge_cli.plan import MergePlan
from merge_cli.stream import StreamResult, stream
from tests.cli.conftest import Run


@pytest.mark.parametrize("replay", ["0", "-1", "some", "9" * 5000])
def test_what_is_no_number_of_tensors_is_two(run: Run, folder: Path, replay: str) -> None:
    done = run("verify", "out", f"--replay={replay}")
    assert done.code == 2
    assert "is not a number of tensors, nor 'all'" in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_memory_reach_the_replay(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    used: list[tuple[int, int]] = []

    def noting(plan: MergePlan, *arguments: Any, **options: Any) -> StreamResult:
        used.append((plan.threads, plan.memory_bytes))
        return stream(plan, *arguments, **options)

    monkeypatch.setattr("merge_cli.verification.replay.stream", noting)
    assert run("merge", "r.yml", "out", "--no-fsync").code == 0
    assert run("verify", "out", "--replay", "all", "--threads", threads, "--memory", "64MiB").code == 0
    assert used == [(threads, 64 * 2**20)]


def test_what_is_wrong_is_shown_and_not_obeyed(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out", "--no-fsync").code == 0
    path = folder / "out" / "SHA256SUMS"
    path.write_text(path.read_text() + f"{'0' * 64}  \x1b[2Jx\n")
    done = run("verify", "out")
    assert (done.code, done.err) == (5, "error: \\x1b[2Jx is missing\n")


def test_an_output_may_have_a_name_that_is_no_text(run: Run, folder: Path) -> None:
    name = os.fsdecode(b"out\xff")
    assert run("merge", "r.yml", name, "--no-fsync").code == 0
    done = run("verify", name, "--replay", "all")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("out\\udcff: sound; ")
