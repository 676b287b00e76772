"""The executor that runs jobs in the calling thread, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import cached_property
from typing import Generic

from merge_cli.stream.executors.loop import Executor, J, R, W, memory_errors, set_torch_threads


class Inline(Executor[J, R], Generic[J, R, W]):
    """Runs jobs in this thread.

    Args:
        make_worker: Returns the worker.
        run: Runs a job on it.
    """

    def __init__(self, make_worker: Callable[[], W], run: Callable[[J, W], R]) -> None:
        self._make_worker, self._run = make_worker, run

    @cached_property
    def _worker(self) -> W:
        return self._make_worker()

    def map(self, jobs: Iterable[J]) -> Generator[R, None, None]:
        """Yield what each job returns, in order."""
        # Blocks are small: torch's own threads would only wait for each other.
        before = set_torch_threads(1)
        try:
            with memory_errors():
                for job in jobs:
                    yield self._run(job, self._worker)
        finally:
            set_torch_threads(before)
