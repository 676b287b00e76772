"""The executor whose workers are threads.

Threads release Python's lock only while kernels, numpy, torch or hashlib work, in pieces of some ten microseconds,
and whatever lies between runs no faster on two cores than on one, but slower: the lock, and every object it guards,
moves from one core's cache to the other's. Measured on two cores, the best of four alternating runs of computing a 0.5B
merge of three fine-tunes, one thread, two, and two processes: linear 0.84, 0.56 and 0.49 s, dare_linear 1.75, 1.21 and
0.92, ties 3.2, 2.1 and 1.9; with torch's kernels, two threads and two processes, dare_linear 3.1 and 1.7, ties 4.4 and
3.5.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from queue import SimpleQueue
from typing import Generic

from merge_cli.stream.executors.loop import Executor, J, R, W, memory_errors, set_torch_threads

# Jobs per worker that wait for their turn, so that none waits for whoever takes the results.
_AHEAD = 16


class Threads(Executor[J, R], Generic[J, R, W]):
    """Runs jobs in threads of this process.

    Args:
        make_worker: Returns a worker; called once for each, in the thread that calls :meth:`map`.
        run: Runs a job on a worker.
        count: How many workers.
    """

    def __init__(self, make_worker: Callable[[], W], run: Callable[[J, W], R], count: int) -> None:
        self._make_worker, self._run, self._count = make_worker, run, count

    @cached_property
    def _idle(self) -> SimpleQueue[W]:
        workers: SimpleQueue[W] = SimpleQueue()
        for _ in range(self._count):
            workers.put(self._make_worker())
        return workers

    def map(self, jobs: Iterable[J]) -> Generator[R, None, None]:
        """Yield what each job returns, in the order in which they end."""
        with memory_errors(), ThreadPoolExecutor(self._count, initializer=set_torch_threads, initargs=(1,)) as pool:
            idle, done, rest = self._idle, SimpleQueue[Future[R]](), iter(jobs)

            def run(job: J) -> R:
                worker = idle.get()
                try:
                    return self._run(job, worker)
                finally:
                    idle.put(worker)

            def submit(most: int) -> int:
                begun = [pool.submit(run, job) for job in islice(rest, most)]
                for future in begun:
                    future.add_done_callback(done.put)
                return len(begun)

            try:
                left = submit(_AHEAD * self._count)
                while left:
                    yield done.get().result()
                    left += submit(1) - 1
            finally:
                pool.shutdown(cancel_futures=True)
