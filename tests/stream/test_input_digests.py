"""The manifest says which bytes went in, however and how often they were hashed."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from merge_cli.checkpoint import Files
from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan
from merge_cli.report import MergeReport
from merge_cli.run import merge
from merge_cli.stream import input_digests
from merge_cli.stream.executors import start_method
from tests.crash.cases import RECIPES, contents, planned, write_models
from tests.stream.test_progress import Recorder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of checkpoints, and give the test a cache of its own that keeps what is as new as they are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("merge_cli.checkpoint.digest_cache._SETTLED_NS", 0)
    folder = write_models(tmp_path / "models")
    time.sleep(0.01)
    return folder


def recorded(out: Path) -> dict[str, str | None]:
    """Return what a manifest records: input file -> SHA-256."""
    made = json.loads((out / "merge_manifest.json").read_text())
    return {
        f"{each['reference']}/{file['name']}": file.get("sha256") for each in made["inputs"] for file in each["files"]
    }


def digests(folder: Path, *names: str) -> dict[str, str]:
    paths = [path for name in names for path in sorted((folder / name).glob("*.safetensors"))]
    return {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


READ: Mapping[str, tuple[str, ...]] = {
    "linear": ("one", "two"),
    "ties of the model": ("base", "one", "two"),
    "copies": ("two",),
    "gradient_matching": (
        *("base", "one", "two", "fisher-one", "fisher-two", "gradient-one", "gradient-two", "fisher-base"),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_every_input_is_recorded_with_its_digest_and_hashed_once_only(models: Path, tmp_path: Path, name: str) -> None:
    def merged(out: str) -> MergeReport:
        return merge(planned(models, RECIPES[name], threads=1), tmp_path / out / "out", sync=False)

    wanted = digests(models, *READ[name])
    assert merged("first").hashed_bytes == sum((models / file).stat().st_size for file in wanted)
    assert merged("second").hashed_bytes == 0
    assert recorded(tmp_path / "first" / "out") == wanted
    assert contents(tmp_path / "first" / "out") == contents(tmp_path / "second" / "out")


def test_a_file_of_which_nothing_is_read_is_not_hashed(models: Path, tmp_path: Path) -> None:
    done = merge(planned(models, {**RECIPES["linear"], "base_model": "base"}), tmp_path / "out", sync=False)
    wanted = digests(models, "one", "two")
    assert recorded(tmp_path / "out") == {"base/model.safetensors": None, **wanted}
    assert done.hashed_bytes == sum((models / file).stat().st_size for file in wanted)


def test_of_several_files_those_are_hashed_that_are_not_known(models: Path, tmp_path: Path) -> None:
    merge(planned(models, RECIPES["copies"]), tmp_path / "two", sync=False)
    done = merge(planned(models, RECIPES["linear"]), tmp_path / "out", sync=False)
    assert done.hashed_bytes == (models / "one" / "model.safetensors").stat().st_size
    assert recorded(tmp_path / "out") == digests(models, "one", "two")


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3}, {"threads": 3, "processes": True}])
def test_large_files_are_followed_while_they_are_read(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    if options.pop("processes", False) and start_method() is None:
        pytest.skip("workers are not forked on this system")
    monkeypatch.setattr(input_digests, "_LEAST", 1)
    monkeypatch.setattr(input_digests, "_AT_A_TIME", 1000)
    plan = planned(models, RECIPES["ties of each tensor"], threads=options["threads"])
    merge(plan, tmp_path / "out", sync=False, processes=options["threads"] > 1)
    assert recorded(tmp_path / "out") == digests(models, "base", "one", "two")


def test_what_is_hashed_when_all_is_merged_is_a_phase_of_its_own(models: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    merge(planned(models, RECIPES["linear"], threads=1), tmp_path / "out", sync=False, listener=recorder)
    # These files are too small to be hashed before.
    total = sum((models / file).stat().st_size for file in digests(models, "one", "two"))
    assert recorder.phases[-1] == ("hashing inputs", total)
    assert recorder.done[-1].total() == total
    merge(planned(models, RECIPES["linear"]), tmp_path / "again", sync=False, listener=recorder)
    assert recorder.phases[-1][0] == "merging"


def test_without_digests_none_are_recorded_and_nothing_is_hashed(models: Path, tmp_path: Path) -> None:
    done = merge(planned(models, RECIPES["linear"]), tmp_path / "out", sync=False, input_digests=False)
    assert done.hashed_bytes == 0
    assert set(recorded(tmp_path / "out").values()) == {None}
    assert not (tmp_path / "cache").exists()


class OnceRead(Files):
    """Does something to an input when the merge has read from it a number of times."""

    def __init__(self, act: Callable[[], object], reads: int = 3) -> None:
        self.act, self.left = act, reads

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        count = super().pread(fd, view, offset)
        self.left -= 1
        if self.left == 0:
            self.act()
        return count


def change_between_samples(path: Path) -> None:
    """Change a number that no sample is of, in place, and set the time back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2 - 50_000)
        found = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([found[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def prepared(models: Path, *, hashed: bool, tmp_path: Path) -> MergePlan:
    """Plan a merge, of models that an earlier one has hashed or not."""
    if hashed:
        merge(planned(models, RECIPES["linear"]), tmp_path / "earlier", sync=False)
    return planned(models, RECIPES["linear"], threads=1)


@pytest.mark.parametrize("hashed", [False, True])
def test_a_change_that_no_sample_shows_is_seen_where_files_are_hashed(
    models: Path, tmp_path: Path, hashed: bool
) -> None:
    plan, path = prepared(models, hashed=hashed, tmp_path=tmp_path), models / "one" / "model.safetensors"
    sample = plan.inputs[0].files[0].sample

    class Changing(Files):
        """Changes a file after it was read from, or where it is hashed in this merge, which starts at 0, after that."""

        done = False

        def pread(self, fd: int, view: memoryview, offset: int) -> int:
            count = super().pread(fd, view, offset)
            if not self.done and (hashed or offset == 0) and os.path.samestat(os.fstat(fd), path.stat()):
                self.done = True
                change_between_samples(path)
            return count

    with pytest.raises(CheckpointError, match=r"one/model\.safetensors has changed since the merge was planned"):
        merge(plan, tmp_path / "out", files=Changing())
    assert planned(models, RECIPES["linear"]).inputs[0].files[0].sample == sample
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hashed", [False, True])
def test_a_file_that_only_gets_another_mode_or_link_is_recorded_and_not_remembered(
    models: Path, tmp_path: Path, hashed: bool
) -> None:
    plan, path = prepared(models, hashed=hashed, tmp_path=tmp_path), models / "one" / "model.safetensors"
    files = OnceRead(lambda: (path.chmod(0o600), os.link(path, tmp_path / "link")))
    merge(plan, tmp_path / "out", sync=False, files=files)
    assert files.left < 0
    assert recorded(tmp_path / "out") == digests(models, "one", "two")
    again = merge(planned(models, RECIPES["linear"]), tmp_path / "again", sync=False)
    assert again.hashed_bytes == path.stat().st_size


def test_a_file_that_can_no_more_be_read_ends_the_merge(models: Path, tmp_path: Path) -> None:
    path = models / "one" / "model.safetensors"

    class Failing(Files):
        def pread(self, fd: int, view: memoryview, offset: int) -> int:
            # Merging reads headers at planning only.
            if offset == 0 and os.path.samestat(os.fstat(fd), path.stat()):
                raise OSError(5, "Input/output error")
            return super().pread(fd, view, offset)

    plan = planned(models, RECIPES["linear"])
    with pytest.raises(CheckpointError, match=r"cannot read .*one/model\.safetensors: Input/output error"):
        merge(plan, tmp_path / "out", sync=False, files=Failing())
    assert not (tmp_path / "out").exists()
