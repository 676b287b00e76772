"""Whether Fisher files belong to the models beside which the recipe names them."""

from __future__ import annotations

from merge_cli.checkpoint import Checkpoint, Reader, model_identity
from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan

_SAMPLE = 1024


def check_fishers(plan: MergePlan, reader: Reader) -> None:
    """Refuse a Fisher of another model, and a file that holds the model's weights instead of a Fisher.

    A Fisher may have been measured at its model or, for the removal of a task, at the base. Reads samples only.

    Raises:
        CheckpointError: Naming the Fisher and the model.
    """
    by_role = {each.role: each.checkpoint for each in plan.inputs}
    pairs = [(f"fisher {i}", f"model {i}") for i in range(len(plan.scales))] + [("base fisher", "base")]
    for fisher_role, model_role in pairs:
        fisher, model = by_role.get(fisher_role), by_role.get(model_role)
        if fisher is None or model is None:
            continue
        _check_identity(fisher, model, by_role.get("base"), reader)
        _check_not_weights(fisher, model, reader)


def _check_identity(fisher: Checkpoint, model: Checkpoint, base: Checkpoint | None, reader: Reader) -> None:
    recorded = fisher.metadata.get("model_identity")
    if not recorded or recorded == model_identity(model, reader):
        return
    if base is not None and recorded == model_identity(base, reader):
        return
    raise CheckpointError(
        f"the Fisher {fisher.label} was not measured at {model.label}: it records another model's identity",
        hint="the model was changed or trained further since, or two Fishers are mixed up; measure it again",
    )


def _check_not_weights(fisher: Checkpoint, model: Checkpoint, reader: Reader) -> None:
    """A tool that skips frozen parameters leaves their weights in the file that should hold Fishers."""
    for name, tensor in fisher.tensors.items():
        twin = model.find(name)
        if twin is None or twin.dtype is not tensor.dtype or twin.shape != tensor.shape or tensor.numel < 2:
            continue
        count = min(_SAMPLE, tensor.numel) * tensor.dtype.itemsize
        one, other = bytearray(count), bytearray(count)
        reader.read_into(memoryview(one), tensor, 0)
        reader.read_into(memoryview(other), twin, 0)
        if one == other and any(one):
            raise CheckpointError(
                f"'{name}' in the Fisher {fisher.label} holds the weights of {model.label}",
                hint="the file is a checkpoint, or its maker left out frozen parameters; measure the Fisher again",
            )
