"""Errors on numbers that are not finite, with what can be pasted into the recipe to leave such a tensor unmerged."""

from __future__ import annotations

from merge_cli.checkpoint import Reader, Source
from merge_cli.errors import CheckpointError, VerificationError
from merge_cli.plan import MergePlan, TensorTask
from merge_cli.plan.exclusions import exclusion_line
from merge_cli.plan.outputs import Output
from merge_cli.stream.decode import is_finite


def input_error(plan: MergePlan, tensor: Source, reader: Reader) -> CheckpointError:
    """Return what is raised where a tensor that is read is not finite."""
    message = f"'{tensor.name}' in {tensor.file} holds NaN or infinity"
    task = next((task for task in plan.tasks if tensor in task.sources), None)
    if task is None or task.copied is not None:
        hint = "the checkpoint is damaged or training diverged; it is only copied: --allow-nonfinite copies it as it is"
    else:
        hint = f"the checkpoint is damaged or training diverged; {_way_out(plan, task, reader)}"
    return CheckpointError(message, hint=hint)


def output_error(plan: MergePlan, task: TensorTask, output: Output, reader: Reader) -> VerificationError:
    """Return what is raised where a result is not finite."""
    place = output.layout.targets[task.target.name]
    whole = f"the output {output.folder}".rstrip()
    if plan.allow_nonfinite and not all(is_sound(source, reader) for source in task.sources):
        why = "as did an input that --allow-nonfinite let through"
        hint = _way_out(plan, task, reader)
    else:
        why = "though its inputs are finite"
        hint = f"{place.dtype.torch_name} may be too narrow for it; choose a wider out_dtype, or smaller weights"
    return VerificationError(f"'{place.name}' of {whole} holds NaN or infinity, {why}", hint=hint)


def is_sound(tensor: Source, reader: Reader) -> bool:
    """Tell whether all of a tensor can be read and is finite in float32."""
    try:
        return is_finite(tensor, reader)
    except CheckpointError:
        return False


def _way_out(plan: MergePlan, task: TensorTask, reader: Reader) -> str:
    """Say how to copy the tensor from the base, or else from the first model that has it sound."""
    name, given = task.target.name, plan.recipe.exclude
    donors = [each for each in plan.inputs if each.role.is_model]
    spoiled = []
    for donor in donors:
        tensor = donor.checkpoint.find(name)
        if tensor is None:
            continue
        if not is_sound(tensor, reader):
            spoiled.append(donor.label)
            continue
        line = exclusion_line(name, donor.label if donor is not donors[0] else "", given)
        where = "in place of the recipe's exclude" if given else "into the recipe"
        besides = f", that of {spoiled[0]} holding NaN or infinity too" if donors[0].label in spoiled else ""
        return f"put this {where} to copy the tensor from {donor.label}{besides}:\n{line}"
    return (
        "no model of the recipe has this tensor without NaN or infinity: fix one, or copy it as it is by "
        f"--allow-nonfinite and\n{exclusion_line(name, '', given)}"
    )
