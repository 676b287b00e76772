"""What ``merge-cli verify`` takes and says."""

import hashlib
import json
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


def test_it_is_told_which_files_were_merged(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out", "--no-fsync").code == 0
    names = [f"{name}/model.safetensors" for name in ("base", "one", "two")]
    wanted = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    assert json.loads(run("verify", "out", "--json").out)["inputs"] == wanted
    shown = run("inspect", "out").out
    assert all(f"{digest[:12]}..." in shown for digest in wanted.values())
    assert run("merge", "r.yml", "bare", "--no-fsync", "--no-input-digests").code == 0
    assert json.loads(run("verify", "bare", "--json").out)["inputs"] == dict.fromkeys(wanted)
    assert run("inspect", "bare").out.count("unknown") == 3


def test_a_recipe_in_another_folder_than_the_output_is_replayed_from_anywhere(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "demo").mkdir()
    for name in ("base", "one", "two", "r.yml"):
        (folder / name).rename(folder / "demo" / name)
    assert run("merge", "demo/r.yml", "mine", "--no-fsync").code == 0
    assert run("verify", "mine", "--replay", "all").code == 0
    monkeypatch.chdir("/")
    assert run("verify", folder / "mine", "--replay", "all").code == 0


def test_an_input_that_has_changed_is_three_and_not_the_outputs_fault(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out", "--no-fsync").code == 0
    path = folder / "one" / "model.safetensors"
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= 64
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = run("verify", "out", "--replay", "all")
    assert done.code == 3
    assert done.err.startswith("error: 1 input file changed since the merge, so that computing it again says nothing")
    assert "one/model.safetensors" in done.err
    assert run("verify", "out").code == 0


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
