"""Tables of a plan and of a finished merge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from merge_cli.cli.render.console import new_console, new_table
from merge_cli.cli.results import print_json
from merge_cli.plan import MergePlan
from merge_cli.report import MergeReport, findings
from merge_cli.stream import StreamResult, choose_device
from merge_cli.text import count_of, format_bytes, format_count, format_seconds, printable

if TYPE_CHECKING:
    from rich.console import Console

    from merge_cli.output import Rehearsal


def plan(
    planned: MergePlan,
    *,
    as_json: bool,
    every_tensor: bool = False,
    to_stderr: bool = False,
    found: StreamResult | None = None,
    rehearsal: Rehearsal | None = None,
) -> None:
    """Print what a merge would read, write and hold, and what was found where it was measured."""
    if as_json:
        measured = _measured_json(planned, found) if found else {}
        print_json(_plan_json(planned) | measured | (asdict(rehearsal) if rehearsal else {}))
        return
    console = new_console(to_stderr=to_stderr)
    own = _per_model(planned)
    inputs = new_table("role", "checkpoint", "files", "size", *own)
    for each in planned.inputs:
        number = each.role.index if each.role.is_model else None
        values = [given[number] if number is not None else "" for given in own.values()]
        inputs.add_row(str(each.role), printable(each.label), str(len(each.files)), format_bytes(each.nbytes), *values)
    console.print(inputs)
    console.print()
    facts = new_table("", "")
    copied = len(planned.tasks) - len(planned.merged)
    facts.add_row("method", f"{planned.recipe.merge_method}: {planned.method.equation}")
    for name, params in planned.steps:
        facts.add_row("prepare", f"{name} {params.model_dump(mode='json')}")
    facts.add_row("tensors", f"{len(planned.merged)} merged, {copied} copied")
    facts.add_row("read", format_bytes(planned.read_bytes))
    facts.add_row("write", f"{format_bytes(planned.written_bytes)} in {count_of(len(planned.weight_files), 'file')}")
    facts.add_row("hold", f"{format_bytes(planned.buffer_bytes)} of {_budget(planned.memory_bytes)} for buffers")
    device = choose_device(planned.device)
    facts.add_row("work", f"{count_of(planned.threads, 'worker')}, {planned.block_numel} elements per block, {device}")
    console.print(facts)
    if found is not None:
        _sentences(findings(planned, found))
        if every_tensor:
            diagnostics(found.diagnosis.values)
    if every_tensor:
        _every_tensor(planned, console)
    if rehearsal is not None:
        _rehearsed(rehearsal)


def _per_model(planned: MergePlan) -> dict[str, list[str]]:
    """Return what each model is given, by name: a number, or that it depends on the tensor."""
    sets = {id(task.params): task.params.model_dump(mode="json") for task in planned.merged if task.params}
    found = {}
    for name in ("weight", "density"):
        each = [values[name] for values in sets.values() if isinstance(values.get(name), list)]
        if each:
            columns = zip(*each, strict=True)
            found[name] = [f"{column[0]:.4g}" if len(set(column)) == 1 else "by tensor" for column in columns]
    return found


def _every_tensor(planned: MergePlan, console: Console) -> None:
    """Print each set of parameters once, under a letter, and then every tensor with the letter of its own."""
    letters: dict[str, str] = {}
    tensors = new_table("tensor", "dtype", "shape", "set")
    for task in planned.tasks:
        said = json.dumps(task.params.model_dump(mode="json", by_alias=True)) if task.params else ""
        letter = letters.setdefault(said, f"#{len(letters) + 1}") if said else "copied"
        shape = " x ".join(map(str, task.target.shape))
        tensors.add_row(printable(task.target.name), task.target.dtype.torch_name, shape, letter)
    sets = new_table("set", "parameters")
    for said, letter in letters.items():
        sets.add_row(letter, said)
    for table in (sets, tensors):
        console.print()
        console.print(table)


def _budget(nbytes: int) -> str:
    """Return a budget in the unit in which it is usually typed."""
    return f"{nbytes // 2**20} MiB" if nbytes % 2**20 == 0 else format_bytes(nbytes)


def _rehearsed(found: Rehearsal) -> None:
    if found.unchanged:
        typer.echo("a merge would find its output complete and do nothing (--force merges again)")
        return
    if found.resumed_bytes:
        typer.echo(f"a merge would resume from {format_bytes(found.resumed_bytes)} that an interrupted run has written")
    typer.echo("not checked: whether the tensors hold NaN or infinity, which a merge finds where it reads them")


def _measured_json(planned: MergePlan, found: StreamResult) -> dict[str, Any]:
    return {
        "counts": found.counts,
        "diagnostics": dict(found.diagnosis.values),
        "findings": list(findings(planned, found)),
        "predictions": list(found.diagnosis.warnings),
    }


def _plan_json(planned: MergePlan) -> dict[str, Any]:
    return {
        "method": planned.recipe.merge_method,
        "inputs": [
            {"role": str(each.role), "checkpoint": each.label, "files": len(each.files), "bytes": each.nbytes}
            for each in planned.inputs
        ],
        "merged": len(planned.merged),
        "copied": len(planned.tasks) - len(planned.merged),
        "read_bytes": planned.read_bytes,
        "written_bytes": planned.written_bytes,
        "files": len(planned.weight_files),
        "buffer_bytes": planned.buffer_bytes,
        "memory_bytes": planned.memory_bytes,
        "block_numel": planned.block_numel,
        "threads": planned.threads,
        "device": planned.device,
        "digest": planned.digest,
        "warnings": list(planned.warnings),
        "notes": list(planned.notes),
        "tensors": [
            {
                "name": task.target.name,
                "dtype": task.target.dtype.torch_name,
                "shape": list(task.target.shape),
                "copied": task.copied is not None,
                "parameters": task.params.model_dump(mode="json", by_alias=True) if task.params else None,
            }
            for task in planned.tasks
        ],
    }


_KERNELS = {"compiled": "compiled kernels", "numpy": "numpy", "torch": "torch"}


def report(done: MergeReport) -> None:
    """Print what a merge did."""
    if done.unchanged:
        typer.echo(f"{printable(done.out)} is complete: this merge has made it already (--force merges again)")
        return
    # What a stopped run had read is not known; what it had written took none of this run's time.
    fresh = done.written_bytes - done.resumed_bytes
    read = "" if done.resumed_bytes else f"read {format_bytes(done.read_bytes)}, "
    typer.echo(
        f"{printable(done.out)}: {format_count(done.parameters)} parameters, {done.merged} tensors merged, "
        f"{done.copied} copied; "
        f"{read}wrote {format_bytes(fresh)} in {format_seconds(done.seconds)} with {_KERNELS[done.kernels]}"
    )
    if done.resumed_bytes:
        typer.echo(f"  resumed from {format_bytes(done.resumed_bytes)} that an interrupted run had written")
    _sentences(done.findings)


def _sentences(found: Iterable[str]) -> None:
    for sentence in found:
        typer.echo(f"  {printable(sentence)}")


def diagnostics(values: Mapping[str, Any]) -> None:
    """Print what a method says of its prospects."""
    for what, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        typer.echo(f"  {what.replace('_', ' ')}: {', '.join(f'{number:.4g}' for number in numbers)}")
