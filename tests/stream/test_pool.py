"""Threads that take jobs from one queue."""

import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from merge_cli.stream.pool import Job, Pool

Context = list[int]


def noting(number: int, *following: Job[Context]) -> Job[Context]:
    def job(context: Context) -> Iterable[Job[Context]]:
        context.append(number)
        return following

    return job


def contexts(count: int) -> list[Context]:
    return [[] for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_job_runs_once(threads: int) -> None:
    workers = contexts(threads)
    Pool(workers).run(noting(i) for i in range(100))
    assert sorted(number for worker in workers for number in worker) == list(range(100))


def test_what_a_job_brings_goes_before_the_rest_in_its_order() -> None:
    (worker,) = workers = contexts(1)
    Pool(workers).run([noting(0, noting(1, noting(2)), noting(3)), noting(4)])
    assert worker == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threads", [1, 4])
def test_jobs_that_the_last_job_brings_run_too(threads: int) -> None:
    def growing(depth: int) -> Job[Context]:
        def job(context: Context) -> Iterable[Job[Context]]:
            time.sleep(0.001)
            context.append(depth)
            return [growing(depth - 1), growing(depth - 1)] if depth else ()

        return job

    workers = contexts(threads)
    Pool(workers).run([growing(5)])
    assert sum(map(len, workers)) == 2**6 - 1


def test_no_jobs_are_no_work() -> None:
    Pool(contexts(3)).run([])


def test_a_pool_may_run_again() -> None:
    (worker,) = workers = contexts(1)
    pool = Pool(workers)
    pool.run([noting(1)])
    pool.run([noting(2)])
    assert worker == [1, 2]


def test_jobs_are_made_when_they_are_needed() -> None:
    made: list[int] = []

    def jobs() -> Iterator[Job[Context]]:
        for i in range(10):
            made.append(i)
            yield lambda context: [check()]

    def check() -> Job[Context]:
        assert len(made) <= 2
        return lambda context: made.clear() or ()

    Pool(contexts(1)).run(jobs())


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_in_a_job_stops_all_and_is_raised_once(threads: int) -> None:
    workers = contexts(threads)
    before = threading.active_count()

    def failing(context: Context) -> Iterable[Job[Context]]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Pool(workers).run(noting(i) if i != 20 else failing for i in range(10_000))
    assert threading.active_count() == before
    assert sum(map(len, workers)) < 10_000


def test_an_error_while_jobs_are_made_is_raised_too() -> None:
    def jobs() -> Iterator[Job[Context]]:
        yield noting(1)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        Pool(contexts(3)).run(jobs())


def test_the_first_of_several_errors_is_the_one() -> None:
    barrier = threading.Barrier(3)

    def failing(context: Context) -> Iterable[Job[Context]]:
        barrier.wait(5)
        raise ValueError("one of them")

    with pytest.raises(ValueError, match="one of them"):
        Pool(contexts(3)).run([failing] * 3)


def test_a_pool_works_again_after_an_error() -> None:
    (worker,) = workers = contexts(1)
    pool = Pool(workers)

    def failing(context: Context) -> Iterable[Job[Context]]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        pool.run([failing, noting(1)])
    pool.run([noting(2)])
    assert worker == [2]


def test_an_interrupt_of_the_main_thread_stops_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    started, workers = threading.Event(), contexts(2)

    def slow(context: Context) -> Iterable[Job[Context]]:
        started.set()
        time.sleep(0.01)
        context.append(1)
        return ()

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        started.wait(5)
        monkeypatch.undo()
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Pool(workers).run([slow] * 1000)
    assert threading.active_count() == before
    assert sum(map(len, workers)) < 1000
