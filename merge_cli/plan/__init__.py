"""Decisions on names, shapes and bytes: from a recipe and the checkpoints' headers to a :class:`MergePlan`."""

from merge_cli.plan.build import build_plan
from merge_cli.plan.model import MergePlan, TensorTask
from merge_cli.plan.warnings import refuse_warnings

__all__ = ["MergePlan", "TensorTask", "build_plan", "refuse_warnings"]
