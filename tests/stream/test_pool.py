"""Workers that share jobs: the calling thread, threads, or forked processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from merge_cli.errors import CheckpointError, ResourceError
from merge_cli.stream.forking import can_fork
from merge_cli.stream.pool import Job, Pool

forking = pytest.mark.skipif(not can_fork(), reason="workers are not forked on this system")
every_kind = pytest.mark.parametrize(
    ("workers", "processes"),
    [(1, False), (2, False), (7, False), pytest.param(2, True, marks=forking), pytest.param(7, True, marks=forking)],
)
both_kinds = pytest.mark.parametrize("processes", [False, pytest.param(True, marks=forking)])


@dataclass
class Context:
    """What a job has; it remembers the numbers that it was given."""

    seen: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    on_close: Callable[[], None] = lambda: None

    def close(self) -> None:
        self.on_close()


def noting(number: int) -> Job[Context, int]:
    def job(context: Context) -> int:
        context.seen.append(number)
        return number

    return job


def contexts(count: int) -> list[Context]:
    return [Context() for _ in range(count)]


def failing(context: Context) -> int:
    raise ValueError("no")


def at_work() -> tuple[int, int]:
    """How many threads and children this process has."""
    return threading.active_count(), len(multiprocessing.active_children())


@every_kind
@pytest.mark.parametrize("count", [0, 1, 5, 3000])
def test_every_job_runs_once_and_what_it_returns_is_taken_in_this_thread(
    workers: int, processes: bool, count: int
) -> None:
    taken: list[tuple[int, int]] = []
    pool = Pool(contexts(workers), processes=processes)
    last = pool.run(
        map(noting, range(count)), lambda number: taken.append((number, threading.get_ident())), lambda c: len(c.seen)
    )
    assert sorted(taken) == [(number, threading.get_ident()) for number in range(count)]
    # What is last is done once on each worker, and there are no more workers than jobs.
    assert len(last) == min(workers, max(1, count))
    assert sum(last) == count


@both_kinds
def test_jobs_run_at_the_same_time(processes: bool, tmp_path: Path) -> None:
    def job(own: str, other: str) -> Job[Context, bool]:
        def meet(context: Context) -> bool:
            (tmp_path / own).touch()
            deadline = time.monotonic() + 30
            while not (tmp_path / other).exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            return (tmp_path / other).exists()

        return meet

    met: list[bool] = []
    Pool(contexts(2), processes=processes).run([job("a", "b"), job("b", "a")], met.append)
    assert met == [True, True]


@every_kind
def test_a_pool_may_run_again_also_after_an_error(workers: int, processes: bool) -> None:
    pool, taken = Pool(contexts(workers), processes=processes), list[int]()
    with pytest.raises(ValueError, match="no"):
        pool.run([failing] * workers, taken.append)
    pool.run([noting(1), noting(2)], taken.append)
    assert sorted(taken) == [1, 2]


@every_kind
def test_an_error_in_a_job_stops_all_workers_and_is_raised(workers: int, processes: bool) -> None:
    def slow(context: Context) -> int:
        time.sleep(0.001)
        return 0

    before, taken = at_work(), list[int]()
    with pytest.raises(ValueError, match="no"):
        Pool(contexts(workers), processes=processes).run([slow, failing, *[slow] * 100_000], taken.append)
    assert len(taken) < 100_000
    assert at_work() == before


@every_kind
@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_an_error_while_a_result_is_taken_stops_all_workers_too(
    workers: int, processes: bool, error: type[BaseException]
) -> None:
    def refuse(number: int) -> None:
        raise error("enough")

    def slow(context: Context) -> int:
        time.sleep(0.001)
        return 0

    before = at_work()
    with pytest.raises(error, match="enough"):
        Pool(contexts(workers), processes=processes).run([slow] * 100_000, refuse)
    assert at_work() == before


@every_kind
def test_an_error_keeps_its_hint_its_notes_and_its_cause(workers: int, processes: bool) -> None:
    def job(context: Context) -> int:
        try:
            raise OSError(errno.EIO, "gone")
        except OSError as cause:
            error = CheckpointError("cannot read", hint="try again")
            error.add_note("a note")
            raise error from cause

    with pytest.raises(CheckpointError) as caught:
        Pool(contexts(workers), processes=processes).run([job] * workers, lambda _: None)
    assert (caught.value.message, caught.value.hint, caught.value.__notes__) == ("cannot read", "try again", ["a note"])
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO


@every_kind
def test_torch_out_of_memory_is_a_memory_error(workers: int, processes: bool) -> None:
    def job(context: Context) -> int:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(MemoryError, match="DefaultCPUAllocator"):
        Pool(contexts(workers), processes=processes).run([job] * workers, lambda _: None)


@every_kind
def test_torch_computes_on_one_thread_in_a_job_and_as_before_afterwards(workers: int, processes: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threads: list[int] = []
        jobs: list[Job[Context, int]] = [lambda context: torch.get_num_threads()] * 4
        Pool(contexts(workers), processes=processes).run(jobs, threads.append)
        assert threads == [1, 1, 1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@forking
def test_a_process_sends_tensors_whole() -> None:
    found: list[torch.Tensor] = []
    jobs: list[Job[Context, torch.Tensor]] = [lambda context: torch.arange(1000), lambda context: torch.ones(3)]
    Pool(contexts(2), processes=True).run(jobs, found.append)
    assert sorted(tensor.sum().item() for tensor in found) == [3, 499_500]


@forking
def test_a_process_closes_what_it_has_opened_and_an_error_of_that_is_heard() -> None:
    def full() -> None:
        raise ResourceError("cannot close")

    with pytest.raises(ResourceError, match="cannot close"):
        Pool([Context(on_close=full), Context()], processes=True).run([noting(1), noting(2)], lambda _: None)


@forking
def test_a_bug_in_a_process_keeps_its_place() -> None:
    with pytest.raises(ValueError, match="no") as caught:
        Pool(contexts(2), processes=True).run([failing, failing], lambda _: None)
    assert "in failing" in caught.value.__notes__[0]


@forking
@pytest.mark.parametrize("when", ["before", "after_in_parent"])
def test_an_interrupt_at_the_moment_of_a_fork_is_not_lost(when: str) -> None:
    # A hook that a library has for forks; what it raises is printed and forgotten.
    os.register_at_fork(**{when: lambda: armed and signal.raise_signal(armed.pop())})
    armed, before, taken = [signal.SIGINT], at_work(), list[int]()
    with pytest.raises(KeyboardInterrupt):
        Pool(contexts(2), processes=True).run([noting(1)] * 1000, taken.append)
    assert not armed
    assert at_work() == before
    # The second time nothing comes between.
    Pool(contexts(2), processes=True).run([noting(1)] * 10, taken.append)


class Unsendable(Exception):
    """Takes two arguments and says so to nobody."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


@forking
def test_an_error_that_cannot_be_sent_is_told_of_all_the_same() -> None:
    def job(context: Context) -> int:
        raise Unsendable("this", "that")

    with pytest.raises(RuntimeError, match="Unsendable: this: that"):
        Pool(contexts(2), processes=True).run([job, job], lambda _: None)


@forking
def test_a_process_that_is_killed_is_an_error_about_memory() -> None:
    def killed(context: Context) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    before = at_work()
    with pytest.raises(ResourceError, match="exit status -9") as caught:
        Pool(contexts(2), processes=True).run([killed, noting(1)], lambda _: None)
    assert "fewer --threads" in str(caught.value.hint)
    assert at_work() == before


@forking
def test_a_process_that_cannot_be_started_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def fork() -> int:
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(real())
        return started[0]

    before, real = at_work(), os.fork
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(ResourceError, match="cannot start a worker process: Resource temporarily") as caught:
        Pool(contexts(3), processes=True).run([noting(1)] * 3, lambda _: None)
    assert "--threads 1" in str(caught.value.hint)
    assert at_work() == before


_ENDLESS = """
import os, pathlib, sys, time
from merge_cli.stream.pool import Pool

class Context:
    def close(self): pass

def job(context):
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

Pool([Context(), Context()], processes=True).run([job, job], lambda _: None)
"""


@forking
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_forked_them(sent: signal.Signals, tmp_path: Path) -> None:
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
