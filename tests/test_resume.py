"""A merge that was stopped goes on where it was, gives the same bytes, and does not go on with what has changed."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli.checkpoint import Files, open_checkpoint
from merge_cli.errors import CheckpointError, MergeError, RecipeError, ResourceError
from merge_cli.plan import MergePlan
from merge_cli.report import MergeReport
from merge_cli.run import merge
from merge_cli.stream import with_sample_warnings
from merge_cli.stream.executors import start_method
from merge_cli.stream.journal import read_journal
from tests.checkpoints import write_checkpoint
from tests.crash.cases import RECIPES, contents, planned, write_models
from tests.crash.seam import Call, Seam, StopAfter, Stopped, is_block

TIES = RECIPES["ties of each tensor"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of checkpoints that nobody writes into."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def own(models: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoints, to be changed."""
    return Path(shutil.copytree(models, tmp_path / "own"))


def stopped(plan: MergePlan, out: Path, writes: int, **options: Any) -> None:
    """Merge until a number of blocks is written."""
    with pytest.raises(Stopped):
        merge(plan, out, files=StopAfter(writes), **options)
    assert not out.exists()


def refused(plan: MergePlan, out: Path, kind: type[MergeError] = RecipeError, **options: Any) -> str:
    """Return why a merge does not go on; what is there stays as it is."""
    partial = out.with_name("out.partial")
    before = contents(partial)
    with pytest.raises(kind) as caught:
        merge(plan, out, **options)
    assert contents(partial) == before
    assert not out.exists()
    return str(caught.value)


def written_ranges(files: Seam) -> set[tuple[str, int]]:
    return {(call.path.name, call.arguments[2]) for call in files.made if is_block(call)}


# --- it goes on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_merge_that_is_stopped_again_and_again_gives_the_same_bytes(models: Path, tmp_path: Path, name: str) -> None:
    recipe, out, runs = RECIPES[name], tmp_path / "stopped" / "out", 0
    merge(planned(models, recipe), tmp_path / "whole" / "out")
    # Enough for a range of 16 blocks, which are written twice with the precision, and too little for the whole.
    writes = 34 if recipe.get("save_precision") else 18
    while not out.exists():
        runs += 1
        assert runs < 10, "it does not get on"
        with contextlib.suppress(Stopped):
            merge(planned(models, recipe, threads=1), out, files=StopAfter(writes))
    assert runs > 1
    assert contents(out) == contents(tmp_path / "whole" / "out")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


class HalfADisk(Files):
    """Takes the first half of a file of weights, in whichever process."""

    def pwrite(self, fd: int, view: memoryview, offset: int) -> int:
        if offset > self.stat(fd).st_size / 2 > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().pwrite(fd, view, offset)


@pytest.mark.skipif(start_method() is None, reason="workers are not forked on this system")
@pytest.mark.parametrize("name", RECIPES)
def test_workers_that_are_processes_stop_at_a_full_disk_and_go_on_to_the_same_bytes(
    models: Path, tmp_path: Path, name: str
) -> None:
    plan = planned(models, RECIPES[name], threads=3)
    assert plan.threads == 3
    merge(plan, tmp_path / "whole" / "out")
    out = tmp_path / "stopped" / "out"
    with pytest.raises(ResourceError, match="No space left on device"):
        merge(plan, out, processes=True, files=HalfADisk())
    assert not out.exists()
    merge(plan, out, processes=True)
    assert contents(out) == contents(tmp_path / "whole" / "out")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", RECIPES)
def test_wherever_a_merge_is_stopped_it_goes_on_to_the_same_bytes(models: Path, tmp_path: Path, name: str) -> None:
    plan = planned(models, RECIPES[name], threads=1)
    files = Seam()
    merge(plan, tmp_path / "whole" / "out", files=files)
    wanted, blocks = contents(tmp_path / "whole" / "out"), sum(map(is_block, files.made))
    resumed: list[int] = []
    for number, writes in enumerate(range(0, blocks, 6)):
        out = tmp_path / str(number) / "out"
        stopped(plan, out, writes)
        report: MergeReport = merge(planned(models, RECIPES[name]), out)
        assert contents(out) == wanted
        resumed.append(report.resumed_bytes)
    assert resumed == sorted(resumed)
    assert resumed[-1] > 0


@pytest.mark.parametrize("name", ["ties of the model", "gradient_matching", "dare_ties"])
@pytest.mark.parametrize("options", [{"threads": 1, "memory": 2**21}, {"threads": 3, "memory": 2**29}])
def test_it_may_go_on_with_other_threads_and_more_memory(
    models: Path, tmp_path: Path, name: str, options: dict[str, int]
) -> None:
    merge(planned(models, RECIPES[name]), tmp_path / "whole" / "out")
    out = tmp_path / "stopped" / "out"
    stopped(planned(models, RECIPES[name], threads=1), out, 19)
    assert merge(planned(models, RECIPES[name], **options), out).resumed_bytes > 0
    assert contents(out) == contents(tmp_path / "whole" / "out")


@pytest.mark.parametrize("name", ["linear", "ties of each tensor", "gradient_matching"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_bit_that_changed_in_what_a_stopped_run_has_written_is_found_and_merged_again(
    models: Path, tmp_path: Path, name: str, place: int
) -> None:
    plan = planned(models, RECIPES[name], threads=1)
    merge(plan, tmp_path / "whole" / "out")
    out = tmp_path / "stopped" / "out"
    stopped(plan, out, 40 if len(plan.outputs) > 1 else 20)
    past = read_journal(out.with_name("out.partial") / ".journal")
    assert past is not None
    record = past.records[place]
    where = plan.layout.targets[record.tensor]
    shard = out.with_name("out.partial") / where.file.name
    flip(shard, where.offset + (record.start + record.count - 1) * where.dtype.itemsize)
    report = merge(plan, out)
    kept = [each for each in past.records if each is not record]
    assert report.resumed_bytes == sum(each.count * plan.layout.targets[each.tensor].dtype.itemsize for each in kept)
    assert len([warning for warning in report.warnings if "had changed since and were merged again" in warning]) == 1
    assert contents(out) == contents(tmp_path / "whole" / "out")


def test_a_bit_that_changed_in_the_posterior_precision_is_found_too(models: Path, tmp_path: Path) -> None:
    recipe = next(each for each in RECIPES.values() if each.get("save_precision"))
    plan = planned(models, recipe, threads=1)
    merge(plan, tmp_path / "whole" / "out")
    out = tmp_path / "stopped" / "out"
    stopped(plan, out, 40)
    past = read_journal(out.with_name("out.partial") / ".journal")
    assert past is not None
    precision = next(output.layout for output in plan.outputs if output.name == "precision")
    record = next(each for each in past.records if each.tensor in precision.targets)
    where = precision.targets[record.tensor]
    flip(out.with_name("out.partial") / "precision" / where.file.name, where.offset + 4 * record.start)
    assert any("had changed since" in warning for warning in merge(plan, out).warnings)
    assert contents(out) == contents(tmp_path / "whole" / "out")


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def test_no_finished_range_is_computed_again(models: Path, tmp_path: Path) -> None:
    # Looked at before, which reads a sample.
    plan = with_sample_warnings(planned(models, RECIPES["linear"], threads=1))
    whole, first, second = Seam(), StopAfter(20), Seam()
    # Digests of inputs are of all of them.
    merge(plan, tmp_path / "whole" / "out", files=whole, input_digests=False, sample_warnings=False)
    with pytest.raises(Stopped):
        merge(plan, tmp_path / "out", files=first, input_digests=False, sample_warnings=False)
    merge(plan, tmp_path / "out", files=second, input_digests=False, sample_warnings=False)
    once = written_ranges(whole)
    assert len(once) == sum(map(is_block, whole.made))
    # The block at which it was stopped, and those before it in its range, are the only ones written twice.
    twice = written_ranges(second) & written_ranges(first)
    assert written_ranges(second) | written_ranges(first) == once
    assert len(twice) < 16 + 1
    assert len(written_ranges(second)) < len(once) - 3
    # Of a model nothing is read but what is computed.
    weights = models / "one" / "model.safetensors"
    reads = [call for call in second.made if call.name == "pread" and call.path == weights]
    assert len(reads) == len(written_ranges(second))


def test_a_merge_that_failed_for_want_of_space_goes_on_when_there_is_some(models: Path, tmp_path: Path) -> None:
    class Full(Seam):
        def around(self, call: Call, make: Callable[..., Any]) -> Any:
            if call.path.name == "merge_manifest.json":
                raise OSError(28, "No space left on device")
            return make(*call.arguments)

    plan = planned(models, TIES)
    with pytest.raises(ResourceError) as caught:
        merge(plan, tmp_path / "out", files=Full())
    assert caught.value.__notes__ == [
        f"what is done is kept in {tmp_path}/out.partial: run the same command again to resume"
    ]
    report = merge(plan, tmp_path / "out")
    assert report.resumed_bytes == sum(task.target.nbytes for task in plan.tasks)


def test_after_the_device_has_failed_only_what_was_synced_before_counts(models: Path, tmp_path: Path) -> None:
    class Lossy(Seam):
        """Forgets what was not synced yet, and says so once, as a disk with an error does."""

        def around(self, call: Call, make: Callable[..., Any]) -> Any:
            if call.name == "sync" and call.path.suffix == ".safetensors":
                raw = call.path.read_bytes()
                call.path.write_bytes(raw[:1000] + bytes(len(raw) - 1000))
                raise OSError(5, "Input/output error")
            return make(*call.arguments)

    plan = planned(models, TIES)
    with pytest.raises(ResourceError, match="Input/output error"):
        merge(plan, tmp_path / "out", files=Lossy())
    merge(plan, tmp_path / "out")
    merge(plan, tmp_path / "whole" / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")


def test_an_output_that_appears_meanwhile_costs_no_work(models: Path, tmp_path: Path) -> None:
    class Appearing(Seam):
        def around(self, call: Call, make: Callable[..., Any]) -> Any:
            if call.name == "open_write" and call.path.name == "SHA256SUMS":
                shutil.copytree(tmp_path / "older", tmp_path / "out")
            return make(*call.arguments)

    plan = planned(models, TIES)
    merge(planned(models, RECIPES["linear"]), tmp_path / "older")
    with pytest.raises(RecipeError, match="out exists"):
        merge(plan, tmp_path / "out", files=Appearing())
    assert merge(plan, tmp_path / "out", force=True).resumed_bytes == sum(task.target.nbytes for task in plan.tasks)


def test_a_merge_that_was_stopped_while_it_cleared_up_is_not_in_its_own_way(models: Path, tmp_path: Path) -> None:
    """Of what a failed merge removes the journal goes first and the lock last."""
    write_checkpoint(tmp_path / "bad", {"w": [float("nan")], "v": [1.0]})
    bad = planned(tmp_path, {"merge_method": "linear", "models": [{"model": "bad", "parameters": {"weight": 1}}]})
    seam = Seam()
    with pytest.raises(CheckpointError):
        merge(bad, tmp_path / "out", files=seam)
    removals = [call for call in seam.made if call.name.startswith("remove")]
    assert removals[0].path.name == ".journal"
    assert [call.path.name for call in removals[-2:]] == [".lock", "out.partial"]

    class Dying(Seam):
        def around(self, call: Call, make: Callable[..., Any]) -> Any:
            if call.number == removals[1].number:
                raise Stopped
            return make(*call.arguments)

    with pytest.raises(Stopped):
        merge(bad, tmp_path / "out", files=Dying())
    good = planned(models, RECIPES["copies"])
    merge(good, tmp_path / "out")


# --- it does not go on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parameters": {"density": 0.3}}, "the parameters changed"),
        ({"parameters": {"density": 0.4, "lambda": 2}}, "the parameters changed"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"out_dtype": "float16"}, "the layout changed"),
        ({"exclude": ["head"]}, "the parameters changed; the sources changed"),
        ({"merge_method": "dare_ties"}, "method was ties 2 and is dare_ties 2"),
        ({"prepare": {"dare": {"drop_rate": 0.5}}}, "steps"),
        ({"models": [{"model": "two", "parameters": {"weight": 1}}]}, "input model 0"),
        ({"shard_size": 500}, "the layout changed"),
        ({"allow_nonfinite": True}, "--allow-nonfinite was False and is True"),
    ],
)
def test_another_merge_does_not_go_on(models: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    options = {key: change[key] for key in ("shard_size", "allow_nonfinite") if key in change}
    changed = {key: value for key, value in change.items() if key not in options}
    stopped(planned(models, TIES, threads=1), tmp_path / "out", 20)
    why = refused(planned(models, {**TIES, **changed}, **options), tmp_path / "out")
    assert why.startswith(f"{tmp_path}/out.partial holds an unfinished merge of something else: ")
    assert says in why
    assert "hint: --restart throws it away and begins again" in why


def test_another_weight_of_one_model_is_another_merge(models: Path, tmp_path: Path) -> None:
    stopped(planned(models, TIES, threads=1), tmp_path / "out", 20)
    other = [*TIES["models"][:-1], {**TIES["models"][-1], "parameters": {"weight": 0.25}}]
    assert "the parameters changed" in refused(planned(models, {**TIES, "models": other}), tmp_path / "out")


def test_shards_of_another_size_are_another_merge_if_only_those_of_the_precision_differ(
    models: Path, tmp_path: Path
) -> None:
    recipe = RECIPES["gradient_matching"]
    size = planned(models, recipe).layout.nbytes
    stopped(planned(models, recipe, threads=1), tmp_path / "out", 40)
    assert "the layout changed" in refused(planned(models, recipe, shard_size=size), tmp_path / "out")


def _touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def _replaced(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    os.utime(path, ns=(2, 2))


@pytest.mark.parametrize("change", [_touched, _replaced])
def test_an_input_that_has_changed_is_named(own: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    stopped(planned(own, TIES, threads=1), tmp_path / "out", 20)
    change(own / "one" / "model.safetensors")
    why = refused(planned(own, TIES), tmp_path / "out")
    assert "of something else: input model 0 (one, model.safetensors) changed" in why


def _other_numbers(path: Path, tensor: str) -> None:
    """Put another file in the place of one, with its header, size and time, and one number of one tensor changed."""
    before, place = path.stat(), open_checkpoint(path).tensors[tensor]
    raw = bytearray(path.read_bytes())
    raw[place.offset] ^= 1
    fresh = path.with_name("fresh")
    fresh.write_bytes(raw)
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(path)


@pytest.mark.parametrize("tensor", ["layers.0.long", "layers.1.w", "scale"])
def test_an_input_with_other_numbers_and_the_same_header_size_and_time_is_named(
    own: Path, tmp_path: Path, tensor: str
) -> None:
    stopped(planned(own, TIES, threads=1), tmp_path / "out", 20)
    _other_numbers(own / "one" / "model.safetensors", tensor)
    why = refused(planned(own, TIES), tmp_path / "out")
    assert "of something else: input model 0 (one, model.safetensors) changed (numbers)\n  hint: --restart" in why


@pytest.mark.parametrize("how", ["copied", "mode", "linked"])
def test_an_input_that_is_a_copy_or_has_another_mode_is_the_same(own: Path, tmp_path: Path, how: str) -> None:
    merge(planned(own, TIES), tmp_path / "whole" / "out")
    stopped(planned(own, TIES, threads=1), tmp_path / "out", 20)
    path = own / "one" / "model.safetensors"
    if how == "copied":
        shutil.copy2(path, path.with_name("copy"))
        path.with_name("copy").replace(path)
    elif how == "mode":
        path.chmod(0o600)
    else:
        os.link(path, tmp_path / "link")
    assert merge(planned(own, TIES), tmp_path / "out").resumed_bytes > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")


def test_another_version_of_the_method_or_the_program_does_not_go_on(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(planned(models, TIES, threads=1), tmp_path / "out", 20)
    other = with_sample_warnings(planned(models, TIES))
    monkeypatch.setitem(other.__dict__, "method", replace(other.method, version="next"))
    assert "method was ties 2 and is ties next" in refused(other, tmp_path / "out", sample_warnings=False)
    monkeypatch.setattr("merge_cli.stream.resume.TOOL", "merge-cli 99")
    assert "and is merge-cli 99" in refused(planned(models, TIES), tmp_path / "out")


@pytest.mark.parametrize("how", ["removed", "shortened"])
def test_a_shard_that_is_gone_or_cut_off_is_not_gone_on_with(models: Path, tmp_path: Path, how: str) -> None:
    stopped(planned(models, TIES, threads=1), tmp_path / "out", 20)
    shard = tmp_path / "out.partial" / "model.safetensors"
    if how == "removed":
        shard.unlink()
    else:
        os.truncate(shard, 100)
    why = refused(planned(models, TIES), tmp_path / "out")
    assert why.startswith(f"{shard}, which an unfinished merge has begun, is gone or changed\n  hint: --restart")


@pytest.mark.parametrize("change", [{}, {"seed": 4}])
def test_a_restart_throws_away_what_is_there(models: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    stopped(planned(models, TIES, threads=1), tmp_path / "out", 20)
    (tmp_path / "out.partial" / "model.safetensors").write_bytes(b"wrong")
    report = merge(planned(models, {**TIES, **change}), tmp_path / "out", restart=True)
    assert report.resumed_bytes == 0
    merge(planned(models, {**TIES, **change}), tmp_path / "whole" / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")


def test_where_nothing_is_finished_another_merge_may_begin(models: Path, tmp_path: Path) -> None:
    class Dead(StopAfter):
        """A process that is dead does not clear up."""

        def remove(self, path: Path) -> None:
            if self.left >= 0:
                super().remove(path)
            else:
                raise OSError(1, "dead")

    with pytest.raises(Stopped):
        merge(planned(models, TIES, threads=1), tmp_path / "out", files=Dead(0))
    assert (tmp_path / "out.partial" / ".journal").exists()
    assert merge(planned(models, {**TIES, "seed": 9}), tmp_path / "out").resumed_bytes == 0


# --- two at a time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"force": True}, {"restart": True}])
def test_of_two_runs_into_one_output_the_second_is_told(models: Path, tmp_path: Path, options: dict[str, bool]) -> None:
    plan, told, threads = planned(models, TIES), [], threading.active_count()

    class Rivalled(Seam):
        def around(self, call: Call, make: Callable[..., Any]) -> Any:
            if is_block(call) and call.number % 5 == 0:
                with pytest.raises(ResourceError, match="another process is writing") as caught:
                    merge(planned(models, TIES), tmp_path / "out", files=Files(), **options)
                told.append(caught.value.exit_code)
            return make(*call.arguments)

    merge(plan, tmp_path / "out", files=Rivalled())
    assert set(told) == {75}
    merge(plan, tmp_path / "whole" / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")
    assert threading.active_count() == threads


def test_hidden_files_beside_the_weights_do_not_come_along(own: Path, tmp_path: Path) -> None:
    (own / "base" / ".cache.json").write_text("{}")
    merge(planned(own, TIES), tmp_path / "out")
    assert ".cache.json" not in contents(tmp_path / "out")
    assert ".cache.json" not in (tmp_path / "out" / "SHA256SUMS").read_text()


def test_torch_cannot_get_the_memory_for_its_buffers(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    plan = planned(models, TIES)
    monkeypatch.setattr("merge_cli.stream.workers.numpy_suffices", lambda plan: False)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(MemoryError):
        merge(plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class NotRemoved(Seam):
    """A disk on which nothing of a complete output can be removed."""

    def around(self, call: Call, make: Callable[..., Any]) -> Any:
        if call.name == "remove" and call.path.parent.name == "out":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return make(*call.arguments)


def test_what_cannot_be_cleared_away_from_a_complete_output_is_told_and_goes_the_next_time(
    models: Path, tmp_path: Path
) -> None:
    plan, out = planned(models, TIES), tmp_path / "out"
    said = f"what the run kept in {out} could not all be removed: Input/output error; run the same command again"
    assert said in merge(plan, out, files=NotRemoved()).warnings
    assert (out / ".lock").exists()
    assert said in merge(plan, out, files=NotRemoved()).warnings
    report = merge(plan, out)
    assert report.unchanged
    assert said not in report.warnings
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
