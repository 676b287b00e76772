"""Workers and executors for a plan: which kind, how many, and what they are made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from merge_cli.checkpoint import Reader
from merge_cli.kernels import Backend, backend_for
from merge_cli.optional import import_optional
from merge_cli.plan import MergePlan
from merge_cli.process import keep_large_buffers
from merge_cli.stream.executors import Executor, Inline, Processes, Threads, start_method
from merge_cli.stream.jobs import Job, Result, run_jobs
from merge_cli.stream.pipeline import ranges
from merge_cli.stream.worker import Sink, Worker

# Elements of a tensor on average below which Python's own work, which one thread does at a time, is most of it.
_SMALL_TENSOR = 2**15


@dataclass(frozen=True)
class WorkerSettings:
    """Recipe for a worker: plain data, to be sent to other processes.

    Attributes:
        plan: The plan.
        reader: Where the inputs come from.
        sinks: Output -> where it goes.
        device: Where blocks are computed.
        drops: Whether inputs are dropped from the page cache behind a worker.
        followed: The input files whose pages are dropped by whoever hashes them.
    """

    plan: MergePlan
    reader: Reader
    sinks: Mapping[str, Sink]
    device: str
    drops: bool = False
    followed: Collection[Path] = field(default=frozenset())


def make_worker(settings: WorkerSettings) -> Worker:
    """Make a worker."""
    keep_large_buffers()
    backend = choose_backend(settings.plan, settings.device)
    return Worker(settings.plan, settings.reader, settings.sinks, backend, settings.drops, followed=settings.followed)


def kernels_of(plan: MergePlan, device: str) -> str:
    """Return the name of what computes a plan: ``compiled``, ``numpy`` where nothing was compiled, or ``torch``."""
    if device != "cpu" or not numpy_suffices(plan):
        return "torch"
    return "compiled" if backend_for("cpu").compiled else "numpy"


def choose_backend(plan: MergePlan, device: str) -> Backend:
    """Return what computes a plan on a device; imports torch only where it is needed.

    Raises:
        RecipeError: If torch is needed and not installed.
    """
    if kernels_of(plan, device) != "torch":
        return backend_for(device)
    import_optional("torch", f"merge_method: {plan.recipe.merge_method}")
    return backend_for(device, tensors=True)


def numpy_suffices(plan: MergePlan) -> bool:
    """Tell whether the method and all preparing steps take numpy's arrays."""
    return plan.method.numpy and all(step.numpy for step, _ in plan.prepared_by)


def choose_executor(settings: WorkerSettings, *, processes: bool) -> tuple[Executor[Sequence[Job], list[Result]], int]:
    """Return what runs the jobs of a plan, and how many workers it has: no more than there are ranges.

    Args:
        settings: What workers are made from.
        processes: Whether they may be processes, on the CPU and where the system allows it.
    """
    plan, make = settings.plan, partial(make_worker, settings)
    method = start_method() if processes and settings.device == "cpu" else None
    numel = sum(task.target.numel for task in plan.tasks)
    wanted = plan.threads if method or numel >= _SMALL_TENSOR * len(plan.tasks) else 1
    spans = (span for task in plan.tasks for span in ranges((0, task.target.numel), plan.block_of(task)))
    count = sum(1 for _ in islice(spans, wanted))
    if count <= 1:
        return Inline(make, run_jobs), 1
    if method is None:
        return Threads(make, run_jobs, count), count
    # What this process has opened, it can later tell to be unchanged.
    settings.reader.open_all(leaf.file for task in plan.tasks for source in task.sources for leaf in source.leaves)
    # What this process has imported, forked ones need not.
    choose_backend(plan, settings.device)
    return Processes(make, run_jobs, count, method=method), count
