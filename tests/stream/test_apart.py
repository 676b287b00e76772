"""A merge in processes of any kind, and in parts that know nothing of each other but what was measured."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from merge_cli.checkpoint import Reader, ShardWriter
from merge_cli.errors import ResourceError
from merge_cli.kernels import GRAIN
from merge_cli.plan import MergePlan
from merge_cli.run import merge
from merge_cli.stream import Measurements, measure_all, stream
from merge_cli.stream.executors import START_METHOD_VARIABLE
from merge_cli.stream.jobs import CopyRange, Fold, MeasureTensor, MergeRange, MergeTensor, run_jobs
from merge_cli.stream.workers import WorkerSettings, make_worker
from tests.crash.cases import contents
from tests.stream.families import planned
from tests.stream.test_progress import Recorder

MODELS = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("one", 1), ("two", 0.5))]
# Nothing to measure; each tensor; all of them; each, then all behind that, then each.
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": MODELS},
    "ties": {"merge_method": "ties", "models": MODELS, "parameters": {"density": 0.3}},
    "ties of the model": {"merge_method": "ties", "models": MODELS, "parameters": {"density": 0.3, "trim": "model"}},
    "behind steps": {
        "merge_method": "ties",
        "models": MODELS,
        "parameters": {"density": 0.5},
        "prepare": {"dare": {"drop_rate": 0.3, "rescale": "l1"}, "keep_largest": {"density": 0.4, "scope": "model"}},
    },
}
can_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
every_recipe = pytest.mark.parametrize("name", RECIPES)


def plan_of(family: Path, name: str, **changes: Any) -> MergePlan:
    return replace(planned(family, {"base_model": "base", **RECIPES[name]}), block_numel=GRAIN, threads=1, **changes)


def reader_of(plan: MergePlan) -> Reader:
    return Reader([file for each in plan.inputs for file in each.files])


def merged(plan: MergePlan, folder: Path, **options: Any) -> dict[str, bytes]:
    """Merge the tensors of a plan into the files of its layout, and return these."""
    folder.mkdir(exist_ok=True)
    with reader_of(plan) as reader, ShardWriter(folder, plan.layout) as writer:
        stream(plan, {"merged": writer}, reader, **options)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- start methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"),
    [pytest.param("fork", name, marks=can_fork) for name in RECIPES] + [("spawn", "behind steps")],
)
def test_the_way_in_which_processes_start_does_not_change_a_byte(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    plan = plan_of(family, name)
    report = merge(plan, tmp_path / "inline" / "out", sync=False)
    monkeypatch.setenv(START_METHOD_VARIABLE, method)
    for kind, options in (("threads", {}), ("processes", {"processes": True})):
        other = merge(replace(plan, threads=2), tmp_path / kind / "out", sync=False, **options)
        assert contents(tmp_path / kind / "out") == contents(tmp_path / "inline" / "out")
        assert other.counts == report.counts


def test_an_error_in_a_fresh_process_is_the_one_that_its_user_knows(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(START_METHOD_VARIABLE, "spawn")
    plan = plan_of(family, "linear")
    folder = tmp_path / "out"
    folder.mkdir()
    with reader_of(plan) as reader, ShardWriter(folder, plan.layout) as writer:
        path = next(folder.iterdir())
        path.write_bytes(b"shorter")
        with pytest.raises(ResourceError, match="was changed or removed while it was written"):
            stream(replace(plan, threads=2), {"merged": writer}, reader, processes=True)


def test_a_worker_in_a_fresh_process_needs_no_torch(family: Path, tmp_path: Path) -> None:
    plan = plan_of(family, "ties")
    with reader_of(plan) as reader:
        (tmp_path / "worker").write_bytes(pickle.dumps(partial(make_worker, WorkerSettings(plan, reader, {}, "cpu"))))
    program = "import pickle, sys; pickle.load(sys.stdin.buffer)(); print('torch' in sys.modules)"
    with (tmp_path / "worker").open("rb") as stdin:
        done = subprocess.run([sys.executable, "-c", program], stdin=stdin, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- data -----------------------------------------------------------------------------------------------------------


@every_recipe
def test_a_plan_is_sent_without_what_is_derived_from_it(family: Path, name: str) -> None:
    plan = plan_of(family, name)
    before = len(pickle.dumps(plan))
    digest = plan.digest
    assert plan.method.merge
    sent = pickle.dumps(plan)
    assert len(sent) == before
    again = pickle.loads(sent)
    assert again == plan
    assert again.digest == digest


def test_a_job_of_each_kind_gives_elsewhere_what_it_gives_here(family: Path, tmp_path: Path) -> None:
    plan = plan_of(family, "behind steps")
    number = next(i for i, task in enumerate(plan.tasks) if task.target.name == "layers.0.odd")
    copied = next(i for i, task in enumerate(plan.tasks) if task.copied is not None)
    with reader_of(plan) as reader:
        known = measure_all(plan, reader)
        state = plan.prepared_by[0][0].measure(plan.steps[0][1]).start(None, plan.steps[0][1])  # type: ignore[union-attr, arg-type]
        jobs = [
            CopyRange(copied, (0, 2)),
            MergeTensor(number, ((0, 5000), (7000, 12_000)), ((2, "merged"),), known),
            MeasureTensor(number, 2, "merged", known),
            Fold(0, ((number, [(0, 5000)]),), 0, "merged", state, Measurements(), drop_cache=False),
        ]
        threshold = run_jobs([jobs[2]], make_worker(WorkerSettings(plan, reader, {}, "cpu")))[0].value  # type: ignore[union-attr]
        known.add("layers.0.odd", 2, "merged", threshold)
        jobs.append(MergeRange(number, (3, 4), known.of("layers.0.odd")))
        settings = WorkerSettings(plan, reader, {}, "cpu")
        here = run_jobs(jobs, make_worker(settings))
        there = run_jobs(pickle.loads(pickle.dumps(jobs)), make_worker(pickle.loads(pickle.dumps(settings))))
    assert len(here) == 6
    assert there == here


# --- measured values ------------------------------------------------------------------------------------------------


@every_recipe
def test_halves_of_a_merge_that_are_given_what_was_measured_make_the_bytes_of_the_whole(
    family: Path, tmp_path: Path, name: str
) -> None:
    plan = plan_of(family, name)
    whole = merged(plan, tmp_path / "whole")
    with reader_of(plan) as reader:
        measured = pickle.dumps(measure_all(plan, reader))
    for half in (plan.tasks[::2], plan.tasks[1::2]):
        found = merged(replace(plan, tasks=half), tmp_path / "halves", measured=pickle.loads(measured))
    assert found == whole


@every_recipe
def test_what_is_handed_in_is_not_measured_again_and_comes_out(family: Path, name: str) -> None:
    plan, recorder = plan_of(family, name), Recorder()
    with reader_of(plan) as reader:
        first = stream(plan, {}, reader).measured
        again = stream(plan, {}, reader, recorder, measured=first).measured
        assert measure_all(plan, reader) == first == again
    assert [phase for phase, _ in recorder.phases] == ["merging"]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_comes_out_is_the_same_for_any_number_of_workers(family: Path, threads: int) -> None:
    plan = plan_of(family, "behind steps")
    with reader_of(plan) as reader:
        found = stream(replace(plan, threads=threads), {}, reader).measured
    filled = {task.target.name for task in plan.merged if task.target.numel}
    # Over each tensor for the first step, over all for the second; what the method measures stays with the jobs.
    assert {name: set(values) for name, values in found.tensors.items()} == {name: {(0, "merged")} for name in filled}
    assert set(found.model) == {(1, "merged")}


def test_what_is_handed_in_decides_the_result(family: Path, tmp_path: Path) -> None:
    plan = plan_of(family, "ties of the model")
    with reader_of(plan) as reader:
        measured = measure_all(plan, reader)
    (key,) = measured.model
    # No entry of a task vector is as large, so that the base is left.
    other = Measurements({key: type(measured.model[key])([1e30] * 2)})
    assert merged(plan, tmp_path / "other", measured=other) != merged(plan, tmp_path / "out", measured=measured)
