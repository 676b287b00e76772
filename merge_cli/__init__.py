"""Merging of fine-tuned neural networks in parameter space.

    from merge_cli import build_plan, load_recipe, merge

    plan = build_plan(load_recipe("recipe.yml"))
    report = merge(plan, "merged")

Names are imported on first use, so that a program that only asks for the version does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from merge_cli.errors import (
    BusyError,
    CheckpointError,
    Interrupted,
    MergeError,
    RecipeError,
    ResourceError,
    VerificationError,
    WriteError,
)
from merge_cli.optional import missing_library
from merge_cli.version import __version__

if TYPE_CHECKING:
    from merge_cli.checkpoint import open_checkpoint
    from merge_cli.fisher import FisherSettings, estimate_fisher
    from merge_cli.plan import MergePlan, build_plan
    from merge_cli.recipe import Recipe, load_recipe
    from merge_cli.report import MergeReport, Verification
    from merge_cli.run import merge
    from merge_cli.verification import Replay, verify

_LAZY = {
    "MergePlan": "merge_cli.plan",
    "MergeReport": "merge_cli.report",
    "Recipe": "merge_cli.recipe",
    "FisherSettings": "merge_cli.fisher",
    "build_plan": "merge_cli.plan",
    "estimate_fisher": "merge_cli.fisher",
    "load_recipe": "merge_cli.recipe",
    "merge": "merge_cli.run",
    "open_checkpoint": "merge_cli.checkpoint",
    "Replay": "merge_cli.verification",
    "Verification": "merge_cli.report",
    "verify": "merge_cli.verification",
}

__all__ = [
    "BusyError",
    "CheckpointError",
    "FisherSettings",
    "Interrupted",
    "MergeError",
    "MergePlan",
    "MergeReport",
    "Recipe",
    "RecipeError",
    "Replay",
    "ResourceError",
    "Verification",
    "VerificationError",
    "WriteError",
    "__version__",
    "build_plan",
    "estimate_fisher",
    "load_recipe",
    "merge",
    "open_checkpoint",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        try:
            return getattr(importlib.import_module(_LAZY[name]), name)
        except ImportError as error:
            raise missing_library(error) or error from error
    raise AttributeError(f"module 'merge_cli' has no attribute '{name}'")
