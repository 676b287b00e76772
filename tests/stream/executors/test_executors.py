"""Executors share jobs among workers: the calling thread, threads, forked processes, fresh processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli.errors import CheckpointError, ResourceError
from merge_cli.stream.executors import START_METHOD_VARIABLE, Executor, Processes, start_method
from tests.stream.executors import workers
from tests.stream.executors.workers import FAILS, KILLED, LARGE, MAKERS, FullDisk, Unpicklable, Worker

can_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
KINDS = [pytest.param(kind, marks=[can_fork] if "forked" in kind else []) for kind in MAKERS]
every_kind = pytest.mark.parametrize("kind", KINDS)
# Whatever cannot be sent to a fresh process.
every_kind_but_spawned = pytest.mark.parametrize("kind", [kind for kind in KINDS if "spawned" not in kind.values[0]])


def made(kind: str, run: Callable[[int, Worker], object]) -> Executor[int, object]:
    return MAKERS[kind](Worker, run)


def forked(
    run: Callable[[int, Worker], object], count: int = 2, make: type[Worker] = Worker
) -> Processes[Any, Any, Worker]:
    return Processes(make, run, count, method="fork")


def at_work() -> tuple[int, int]:
    """How many threads and children this process has."""
    return threading.active_count(), len(multiprocessing.active_children())


@every_kind
def test_every_job_runs_once_and_another_lot_after_it(kind: str) -> None:
    before = at_work()
    with made(kind, workers.square) as executor:
        for count in (0, 1, 5, 3000, 2):
            assert Counter(executor.map(range(count))) == Counter(number * number for number in range(count))
    assert at_work() == before


def test_in_one_thread_jobs_are_done_in_order_when_their_results_are_asked_for() -> None:
    worker = Worker()
    results = MAKERS["inline"](lambda: worker, workers.square).map(iter([3, 1, 2]))
    assert [next(results), list(worker.seen)] == [9, [3]]
    assert list(results) == [1, 4]


@every_kind_but_spawned
def test_jobs_run_at_the_same_time(kind: str, tmp_path: Path) -> None:
    with made(kind, workers.meet(tmp_path)) as executor:
        if kind != "inline":
            assert list(executor.map([0, 1])) == [True, True]


@can_fork
def test_workers_that_are_processes_stay_for_the_next_jobs() -> None:
    with forked(workers.pid, 3) as executor:
        found = [set(executor.map(range(100))) for _ in range(2)]
    assert found[0] == found[1]
    assert len(found[0]) == 3
    assert os.getpid() not in found[0]


@every_kind
def test_an_error_in_a_job_stops_all_workers_and_is_raised_and_more_jobs_may_follow(kind: str) -> None:
    before = at_work()
    with made(kind, workers.slow) as executor:
        with pytest.raises(ValueError, match="no"):
            for _ in executor.map([0, FAILS, *range(100_000)]):
                pass
        assert at_work() == before
        assert sorted(executor.map([1, 2, 3])) == [1, 4, 9]
    assert at_work() == before


@every_kind_but_spawned
@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_an_error_while_a_result_is_taken_stops_all_workers_too(kind: str, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with made(kind, workers.slow) as executor, closing(executor.map(range(100_000))) as results:
            for _ in results:
                raise error("enough")

    before = at_work()
    with pytest.raises(error, match="enough"):
        interrupted()
    assert at_work() == before


@every_kind
def test_an_error_keeps_its_hint_its_notes_and_its_cause(kind: str) -> None:
    with made(kind, workers.explained) as executor, pytest.raises(CheckpointError) as caught:
        list(executor.map(range(7)))
    assert (caught.value.message, caught.value.hint, caught.value.__notes__) == ("cannot read", "try again", ["a note"])
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO


@every_kind_but_spawned
def test_torch_out_of_memory_is_a_memory_error(kind: str) -> None:
    with made(kind, workers.out_of_memory) as executor, pytest.raises(MemoryError, match="DefaultCPUAllocator"):
        list(executor.map(range(7)))


@every_kind_but_spawned
def test_so_it_is_where_a_worker_is_made(kind: str) -> None:
    def make() -> Worker:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with MAKERS[kind](make, workers.square) as executor, pytest.raises(MemoryError, match="DefaultCPUAllocator"):
        list(executor.map(range(7)))


@every_kind_but_spawned
def test_torch_computes_on_one_thread_in_a_job_and_as_before_afterwards(kind: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with made(kind, lambda number, worker: torch.get_num_threads()) as executor:
            assert list(executor.map(range(4))) == [1, 1, 1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@every_kind_but_spawned
def test_results_larger_than_a_pipe_come_through(kind: str) -> None:
    sizes = [1, 2**16, LARGE, 2**20]
    with made(kind, workers.double) as executor:
        found = [result for result in executor.map(sizes) if isinstance(result, bytes)]
    assert sorted(map(len, found)) == sorted(sizes)


@can_fork
def test_jobs_larger_than_a_pipe_come_through_while_results_do() -> None:
    with Processes(Worker, lambda job, worker: job, 2, method="fork") as executor:
        found = list(executor.map([bytes([number]) * 2**20 for number in range(20)]))
    assert sorted(found) == [bytes([number]) * 2**20 for number in range(20)]


@can_fork
def test_a_process_sends_tensors_whole() -> None:
    with forked(lambda number, worker: torch.full((1000,), number)) as executor:
        found = list(executor.map([2, 3]))
    assert sorted(int(tensor.sum()) for tensor in found) == [2000, 3000]


@can_fork
def test_a_process_closes_what_it_has_opened_and_an_error_of_that_is_heard() -> None:
    before = at_work()
    with pytest.raises(ResourceError, match="cannot close"), forked(workers.square, make=FullDisk) as executor:
        assert sorted(executor.map([1, 2])) == [1, 4]
    assert at_work() == before


@can_fork
def test_the_error_that_was_first_is_not_hidden_by_one_of_closing() -> None:
    def failing() -> None:
        with forked(workers.square, make=FullDisk) as executor:
            list(executor.map([1, 2]))
            raise LookupError

    with pytest.raises(LookupError):
        failing()


@can_fork
def test_a_bug_in_a_process_keeps_its_place() -> None:
    with forked(workers.square) as executor, pytest.raises(ValueError, match="no") as caught:
        list(executor.map([FAILS, FAILS]))
    assert "in square" in caught.value.__notes__[0]


@can_fork
@pytest.mark.parametrize("when", ["before", "after_in_parent"])
def test_an_interrupt_at_the_moment_of_a_fork_is_not_lost(when: str) -> None:
    # A hook that a library has for forks; what it raises is printed and forgotten.
    os.register_at_fork(**{when: lambda: armed and signal.raise_signal(armed.pop())})
    armed, before = [signal.SIGINT], at_work()
    with pytest.raises(KeyboardInterrupt), forked(workers.square) as executor:
        list(executor.map(range(1000)))
    assert not armed
    assert at_work() == before
    # The second time nothing comes between.
    with forked(workers.square) as executor:
        assert len(list(executor.map(range(10)))) == 10


@can_fork
def test_an_error_that_cannot_be_sent_is_told_of_all_the_same() -> None:
    with forked(workers.unsendable) as executor, pytest.raises(RuntimeError, match="Unsendable: this: that"):
        list(executor.map([1, 2]))


@can_fork
def test_a_job_that_cannot_be_sent_is_an_error() -> None:
    before = at_work()
    with (
        Processes(Worker, lambda job, worker: 0, 2, method="fork") as executor,
        pytest.raises(LookupError, match="not to be sent"),
    ):
        list(executor.map([1, Unpicklable(), 2]))
    assert at_work() == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "forked" in kind.values[0] or "spawned" in kind.values[0]])
def test_a_process_that_is_killed_is_an_error_about_memory(kind: str) -> None:
    before = at_work()
    with made(kind, workers.square) as executor, pytest.raises(ResourceError, match="exit status -9") as caught:
        list(executor.map([KILLED, 1]))
    assert "fewer --threads" in str(caught.value.hint)
    assert at_work() == before


@can_fork
def test_so_it_is_when_it_is_killed_in_the_middle_of_a_result() -> None:
    before = at_work()
    with forked(workers.large_and_killed, 1) as executor:
        results = executor.map([1, KILLED])
        assert next(results) == b"1"
        # The pipe is full meanwhile, and the worker is killed with a part of its next result sent.
        time.sleep(1)
        with pytest.raises(ResourceError, match="exit status -9"):
            next(results)
    assert at_work() == before


@can_fork
def test_a_process_that_was_killed_between_two_lots_of_jobs_is_noticed() -> None:
    def killed(executor: Executor[int, object]) -> Iterator[None]:
        (victim,) = set(executor.map([1]))
        assert isinstance(victim, int)
        os.kill(victim, signal.SIGKILL)
        yield

    before = at_work()
    for way in (lambda executor: list(executor.map([1, 2])), lambda executor: executor.close()):
        with forked(workers.pid, 1) as executor:
            next(killed(executor))
            with pytest.raises(ResourceError, match="exit status -9"):
                way(executor)
    assert at_work() == before


@can_fork
def test_a_process_that_cannot_be_started_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def fork() -> int:
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(real())
        return started[0]

    before, real = at_work(), os.fork
    monkeypatch.setattr(os, "fork", fork)
    with (
        forked(workers.square, 3) as executor,
        pytest.raises(ResourceError, match="cannot start a worker process: Resource temporarily") as caught,
    ):
        list(executor.map([1] * 3))
    assert "--threads 1" in str(caught.value.hint)
    assert at_work() == before


_STARTING = """
from merge_cli.stream.executors import Processes
from tests.stream.executors.workers import Starting, first_seen

with Processes(Starting(), first_seen, 1, method="spawn") as executor:
    print(list(executor.map([0])))
"""


def test_an_interrupt_while_a_fresh_process_starts_is_left_to_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", _STARTING], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[1]\n"


_ENDLESS = """
import os, pathlib, sys, time
from merge_cli.stream.executors import Processes

class Worker:
    def close(self): pass

def run(job, worker):
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

list(Processes(Worker, run, 2, method="fork").map([0, 1]))
"""


@can_fork
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(sent: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(children := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.send_signal(sent)
    parent.wait(timeout=60)
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("platform", "named", "expected"),
    [("linux", "", "fork"), ("linux", "spawn", "spawn"), ("darwin", "", None), ("darwin", "spawn", "spawn")],
)
def test_processes_are_forked_on_linux_and_elsewhere_only_started_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, platform: str, named: str, expected: str | None
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(START_METHOD_VARIABLE, named)
    assert start_method() == expected


@pytest.mark.parametrize("named", ["swap", "forkserver"])
def test_a_start_method_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv(START_METHOD_VARIABLE, named)
    with pytest.raises(ResourceError, match=f"MERGE_CLI_START_METHOD is '{named}', expected "):
        start_method()
