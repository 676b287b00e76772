"""Executors, which run jobs in this thread, in threads or in processes; a job is any data."""

from merge_cli.stream.executors.inline import Inline
from merge_cli.stream.executors.loop import Closable, Executor, as_memory_error
from merge_cli.stream.executors.processes import START_METHOD_VARIABLE, Processes, start_method
from merge_cli.stream.executors.threads import Threads

__all__ = [
    "START_METHOD_VARIABLE",
    "Closable",
    "Executor",
    "Inline",
    "Processes",
    "Threads",
    "as_memory_error",
    "start_method",
]
