"""Checks that Fisher and gradient files belong to the models of the recipe."""

from __future__ import annotations

from functools import cache

import numpy as np

from merge_cli.checkpoint import Checkpoint, Reader, model_identity
from merge_cli.errors import CheckpointError
from merge_cli.methods.contract import companion
from merge_cli.plan import MergePlan
from merge_cli.plan.roles import BASE, Role
from merge_cli.stream.decode import read_numbers

_SAMPLE = 1024


def check_fishers(plan: MergePlan, reader: Reader) -> None:
    """Refuse a Fisher or gradient of another model, and a file that holds the model's weights instead of either.

    A Fisher may have been measured at its model or, for the removal of a task, at the base; a gradient says how far
    training at its model has converged, and means nothing elsewhere. Reads samples only.

    Raises:
        CheckpointError: Naming the file and the model.
    """

    @cache
    def identity(role: Role) -> str:
        return model_identity(plan.by_role[role], reader)

    for role, found in plan.by_role.items():
        if role.is_model or role.owner not in plan.by_role:
            continue
        what, model = companion(role.kind), plan.by_role[role.owner]
        places = dict.fromkeys([role.owner, *([BASE] if what.at_base and BASE in plan.by_role else [])])
        recorded = found.metadata.get("model_identity")
        if recorded and all(recorded != identity(place) for place in places):
            at_base = BASE in plan.by_role and recorded == identity(BASE)
            raise _misplaced(what.title, found, model, is_base=at_base)
        _check_not_weights(what.title, found, model, reader)


def _misplaced(what: str, found: Checkpoint, model: Checkpoint, *, is_base: bool) -> CheckpointError:
    if is_base:
        return CheckpointError(
            f"the {what} {found.label} was not measured at {model.label} but at the base",
            hint=f"measure it again at {model.label}; only a Fisher may be that of the base, to remove a task",
        )
    return CheckpointError(
        f"the {what} {found.label} was not measured at {model.label}: it records another model's identity",
        hint=f"the model was changed or trained further since, or two {what}s are mixed up; measure it again",
    )


def _check_not_weights(what: str, found: Checkpoint, model: Checkpoint, reader: Reader) -> None:
    """Refuse a file that holds the model's weights: tools that skip frozen parameters leave them there."""
    for name, tensor in found.tensors.items():
        twin = model.find(name)
        if twin is None or twin.dtype is not tensor.dtype or twin.shape != tensor.shape or tensor.numel < 2:
            continue
        one, other = (read_numbers(each, 0, min(_SAMPLE, tensor.numel), reader) for each in (tensor, twin))
        if np.array_equal(one, other, equal_nan=True) and one.any():
            raise CheckpointError(
                f"'{name}' in the {what} {found.label} holds the weights of {model.label}",
                hint=f"the file is a checkpoint, or its maker left out frozen parameters; measure the {what} again",
            )
