"""Decisions on names, shapes and bytes: from a recipe and the checkpoints' headers to a :class:`MergePlan`."""

from merge_cli.plan.build import DEFAULT_MEMORY, DEFAULT_SHARD, build_plan
from merge_cli.plan.model import MergePlan, PlannedInput, TensorTask

__all__ = ["DEFAULT_MEMORY", "DEFAULT_SHARD", "MergePlan", "PlannedInput", "TensorTask", "build_plan"]
