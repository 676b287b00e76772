"""Plans, reports, methods and checkpoints as tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from merge_cli.cli.example import example_recipe
from merge_cli.errors import count_of, printable, shown
from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import Diagnosis, field_default, is_constant, is_per_model
from merge_cli.plan import MergePlan
from merge_cli.report import Inspection, LayerSummary, MergeReport, MismatchReport, Verification
from merge_cli.units import format_bytes, format_count, format_seconds

_WIDE = 10_000

if TYPE_CHECKING:
    # Imports transformers' half of the project, which other commands do without.
    from merge_cli.demo import DemoReport


def _console(*, to_stderr: bool = False) -> Console:
    """A console that does not wrap or colour what goes into a pipe."""
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    # Tables are cut to the width of the console, which is 80 in a pipe whatever reads it.
    width = None if terminal else _WIDE
    return Console(stderr=to_stderr, highlight=False, soft_wrap=not terminal, width=width, emoji=False, markup=False)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def warnings(lines: Sequence[str]) -> None:
    """Print warnings to standard error."""
    for line in lines:
        typer.echo(f"warning: {printable(line)}", err=True)


def plan(
    planned: MergePlan,
    *,
    as_json: bool,
    every_tensor: bool = False,
    to_stderr: bool = False,
    found: Diagnosis | None = None,
) -> None:
    """Print what a merge would read, write and hold, and what was found where it was measured."""
    if as_json:
        measured = {"diagnostics": dict(found.values), "predictions": list(found.warnings)} if found else {}
        typer.echo(json.dumps(_plan_json(planned) | measured))
        return
    console = _console(to_stderr=to_stderr)
    inputs = _table("role", "checkpoint", "files", "size")
    for each in planned.inputs:
        inputs.add_row(each.role, printable(each.label), str(len(each.files)), format_bytes(each.nbytes))
    console.print(inputs)
    facts = _table("", "")
    copied = len(planned.tasks) - len(planned.merged)
    facts.add_row("method", f"{planned.recipe.merge_method}: {planned.method.equation}")
    for name, params in planned.steps:
        facts.add_row("prepare", f"{name} {params.model_dump(mode='json')}")
    facts.add_row("tensors", f"{len(planned.merged)} merged, {copied} copied")
    facts.add_row("read", format_bytes(planned.read_bytes))
    facts.add_row("write", f"{format_bytes(planned.written_bytes)} in {len(planned.layout.shards)} file(s)")
    facts.add_row("hold", f"{format_bytes(planned.buffer_bytes)} of {format_bytes(planned.memory_bytes)} for buffers")
    facts.add_row("work", f"{planned.threads} thread(s), {planned.block_numel} elements per block, {planned.device}")
    console.print(facts)
    if found is not None:
        diagnostics(found.values)
    if every_tensor:
        tensors = _table("tensor", "dtype", "shape", "")
        for task in planned.tasks:
            what = json.dumps(task.params.model_dump(mode="json", by_alias=True)) if task.params else "copied"
            shape = " x ".join(map(str, task.place.shape))
            tensors.add_row(task.place.name, task.place.dtype.torch_name, shape, what)
        console.print(tensors)


def _plan_json(planned: MergePlan) -> dict[str, Any]:
    return {
        "method": planned.recipe.merge_method,
        "inputs": [
            {"role": each.role, "checkpoint": each.label, "files": len(each.files), "bytes": each.nbytes}
            for each in planned.inputs
        ],
        "merged": len(planned.merged),
        "copied": len(planned.tasks) - len(planned.merged),
        "read_bytes": planned.read_bytes,
        "written_bytes": planned.written_bytes,
        "files": len(planned.layout.shards),
        "buffer_bytes": planned.buffer_bytes,
        "memory_bytes": planned.memory_bytes,
        "block_numel": planned.block_numel,
        "threads": planned.threads,
        "device": planned.device,
        "digest": planned.digest,
        "warnings": list(planned.warnings),
        "tensors": [
            {
                "name": task.place.name,
                "dtype": task.place.dtype.torch_name,
                "shape": list(task.place.shape),
                "copied": task.copied is not None,
                "parameters": task.params.model_dump(mode="json", by_alias=True) if task.params else None,
            }
            for task in planned.tasks
        ],
    }


def report(done: MergeReport) -> None:
    """Print what a merge did."""
    rate = (done.read_bytes + done.written_bytes) / done.seconds if done.seconds else 0.0
    typer.echo(
        f"{printable(done.out)}: {format_count(done.parameters)} parameters, {done.merged} tensors merged, "
        f"{done.copied} copied; "
        f"{format_bytes(done.written_bytes)} in {format_seconds(done.seconds)} ({format_bytes(rate)}/s)"
    )
    if done.resumed_bytes:
        typer.echo(f"  went on from {format_bytes(done.resumed_bytes)} that a stopped run had written")
    for what, count in done.counts.items():
        typer.echo(f"  {what.replace('_', ' ')}: {count} elements")
    diagnostics(done.diagnostics)


def diagnostics(values: Mapping[str, Any]) -> None:
    """Print what a method says of its prospects."""
    for what, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        typer.echo(f"  {what.replace('_', ' ')}: {', '.join(f'{number:.4g}' for number in numbers)}")


def verification(found: Verification, *, as_json: bool) -> None:
    """Print what checking a merged checkpoint has shown; problems on standard error."""
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    warnings(found.notes)
    for line in (line for problem in found.problems for line in shown(f"error: {problem}")):
        typer.echo(line, err=True)
    typer.echo(
        f"{printable(found.out)}: {'sound' if found.sound else 'NOT what the merge has made'}; "
        f"{count_of(found.files, 'file')} as recorded, {count_of(found.tensors, 'tensor')} looked through"
    )
    if found.replayed:
        chosen = "" if found.seed is None else f", chosen with --seed {found.seed}"
        typer.echo(f"  {count_of(len(found.replayed), 'tensor')} computed again, with the same bytes{chosen}")


def methods(*, as_json: bool) -> None:
    """List the methods."""
    found = {name: find_method(name) for name in method_names()}
    if as_json:
        typer.echo(json.dumps({name: method.summary for name, method in found.items()}))
        return
    table = _table("method", "what it does", "parameters")
    for name, method in found.items():
        table.add_row(name, method.summary, ", ".join(f.alias or n for n, f in method.params.model_fields.items()))
    _console().print(table)


def method(name: str, *, as_json: bool) -> None:
    """Describe one method."""
    found = find_method(name)
    if as_json:
        content = {
            "name": name, "summary": found.summary, "equation": found.equation, "source": found.source,
            "differs": found.differs, "version": found.version, "parameters": found.params.model_json_schema(),
        }  # fmt: skip
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    console = _console()
    console.print(f"{name}: {found.summary}\n\n  {found.equation}\n")
    table = _table("parameter", "default", "takes", "")
    properties = found.params.model_json_schema()["properties"]
    for field_name, field in found.params.model_fields.items():
        key = field.alias or field_name
        default = field_default(field)
        needed = default is None and (field.is_required() and not _optional(properties[key]))
        kind = "per model" if is_per_model(field) else "one value" if is_constant(field) else ""
        takes = ", ".join(filter(None, [_takes(properties[key]), kind]))
        table.add_row(key, "required" if needed else _plain(default), takes, field.description or "")
    console.print(table)
    console.print(f"\nsource: {found.source}")
    if found.differs:
        console.print(f"differs: {found.differs}")
    console.print(f"\nexample:\n\n{example_recipe(name)}")


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else "from the file" if value is None else str(value)


def _optional(schema: dict[str, Any]) -> bool:
    items = schema.get("items", {})
    return any(choice.get("type") == "null" for choice in items.get("anyOf", []))


def _takes(schema: dict[str, Any]) -> str:
    """Say in a few words which values a JSON schema admits."""
    if schema.get("type") == "array":
        return _takes(schema.get("items", {}))
    if "anyOf" in schema:
        return " | ".join(filter(None, (_takes(choice) for choice in schema["anyOf"])))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    low, high = schema.get("minimum"), schema.get("maximum")
    kind = {"boolean": "true | false", "null": ""}.get(schema.get("type", ""), schema.get("type", ""))
    if low is not None and high is not None:
        return f"{kind} in [{low:g}, {high:g}]"
    if "exclusiveMinimum" in schema:
        return f"{kind} > {schema['exclusiveMinimum']:g}" + (f", <= {high:g}" if high is not None else "")
    return f"{kind} >= {low:g}" if low is not None else kind


def inspection(found: Inspection, summary: Mapping[str, LayerSummary], *, as_json: bool, every_tensor: bool) -> None:
    """Print what is in a checkpoint, and the summary of a Fisher."""
    if as_json:
        fisher = {"fisher": {layer: asdict(each) for layer, each in summary.items()}} if summary else {}
        typer.echo(json.dumps(found.to_json() | fisher))
        return
    checkpoint, console = found.checkpoint, _console()
    facts = _table("", "")
    facts.add_row("checkpoint", printable(checkpoint.label))
    architectures = checkpoint.config.get("architectures")
    listing = architectures if isinstance(architectures, list) else []
    facts.add_row("architecture", printable(", ".join(map(str, listing))) or "unknown")
    facts.add_row("files", f"{len(checkpoint.files)}, {format_bytes(sum(file.size for file in checkpoint.files))}")
    facts.add_row("tensors", str(len(checkpoint.tensors)))
    facts.add_row("parameters", f"{format_count(found.parameters)} ({found.parameters})")
    facts.add_row("dtypes", ", ".join(f"{name} {format_count(count)}" for name, count in found.dtypes().items()))
    for name, value in checkpoint.metadata.items():
        facts.add_row(printable(name), printable(value))
    console.print(facts)
    console.print(_layers(found, summary))
    tensors = _table("tensor", "dtype", "shape", "layers")
    if every_tensor:
        for name, tensor in checkpoint.tensors.items():
            tensors.add_row(name, tensor.dtype.torch_name, " x ".join(map(str, tensor.shape)), "")
    else:
        for group in found.groups():
            span = f"{group.layers[0]} to {group.layers[-1]}" if len(group.layers) > 1 else ""
            tensors.add_row(group.name, group.dtype, " x ".join(map(str, group.shape)), span)
    console.print(tensors)


def _layers(found: Inspection, summary: Mapping[str, LayerSummary]) -> Table:
    if not summary:
        layers = _table("layer", "parameters")
        for layer, count in found.layers().items():
            layers.add_row(layer, str(count))
        return layers
    layers = _table("layer", "parameters", "mean", "zeros", "largest")
    for layer, each in summary.items():
        layers.add_row(layer, str(each.numel), f"{each.mean:.3g}", f"{each.zeros:.1%}", f"{each.largest:.3g}")
    return layers


def mismatch(found: MismatchReport, *, as_json: bool) -> None:
    """Print a forecast of gradient mismatch."""
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    table = _table("layer", *(scheme.replace("_", " ") for scheme in found.total))
    for layer, numbers in found.layers.items():
        table.add_row(layer, *(f"{number:.4g}" for number in numbers.values()))
    table.add_row("total", *(f"{number:.4g}" for number in found.total.values()))
    _console().print(table)
    if found.measured:
        measured = _table("measured on data", *(scheme.replace("_", " ") for scheme in found.total))
        for what, values in found.measured.items():
            measured.add_row(what, *("-" if number is None else f"{number:.4g}" for number in values.values()))
        _console().print(measured)


def demo(report: DemoReport) -> None:
    """Print the demonstration's tables and what they say."""
    for each in report.tables:
        _console().print(f"\n{each.title}\n")
        table = _table(*each.headings)
        for row in each.rows:
            table.add_row(*row)
        _console().print(table)
    typer.echo("")
    for note in report.notes:
        typer.echo(f"- {note}")
    typer.echo(f"\n{report.folder}: checkpoints, Fishers, recipes, texts; {format_seconds(report.seconds)}")
