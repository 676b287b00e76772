"""Tables of a checkpoint and of its verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import typer
from rich.table import Table

from merge_cli.cli.render.console import new_console, new_table, warnings
from merge_cli.cli.results import print_json
from merge_cli.report import Inspection, LayerSummary, Verification
from merge_cli.text import count_of, format_bytes, format_count, printable, shown


def inspection(found: Inspection, summary: Mapping[str, LayerSummary], *, as_json: bool, every_tensor: bool) -> None:
    """Print what is in a checkpoint, and the summary of a Fisher."""
    if as_json:
        fisher = {"fisher": {layer: asdict(each) for layer, each in summary.items()}} if summary else {}
        print_json(found.to_json() | fisher)
        return
    checkpoint, console = found.checkpoint, new_console()
    facts = new_table("", "")
    facts.add_row("checkpoint", printable(checkpoint.label))
    architectures = checkpoint.config.get("architectures")
    listing = architectures if isinstance(architectures, list) else []
    # A Fisher has none of its own: its metadata name the model.
    if listing or "kind" not in checkpoint.metadata:
        facts.add_row("architecture", printable(", ".join(map(str, listing))) or "unknown")
    facts.add_row("files", f"{len(checkpoint.files)}, {format_bytes(sum(file.size for file in checkpoint.files))}")
    facts.add_row("tensors", str(len(checkpoint.tensors)))
    facts.add_row("parameters", f"{format_count(found.parameters)} ({found.parameters})")
    facts.add_row("dtypes", ", ".join(f"{name} {format_count(count)}" for name, count in found.dtypes().items()))
    for name, value in checkpoint.metadata.items():
        facts.add_row(printable(name), printable(value))
    for note in checkpoint.notes:
        facts.add_row("note", printable(note))
    console.print(facts)
    if found.made_from:
        parts = new_table("made from", "as", "file", "SHA-256")
        for part in found.made_from:
            digest = part.sha256 if every_tensor else f"{part.sha256[:12]}..." if part.sha256 else None
            parts.add_row(printable(part.reference), printable(part.role), printable(part.file), digest or "unknown")
        console.print(parts)
    console.print(_layers(found, summary))
    tensors = new_table("tensor", "dtype", "shape", "layers")
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
        layers = new_table("layer", "parameters")
        for layer, count in found.layers().items():
            layers.add_row(layer, str(count))
        return layers
    layers = new_table("layer", "parameters", "mean", "zeros", "largest")
    for layer, each in summary.items():
        layers.add_row(layer, str(each.numel), f"{each.mean:.3g}", f"{each.zeros:.1%}", f"{each.largest:.3g}")
    return layers


def verification(found: Verification, *, as_json: bool) -> None:
    """Print what checking a merged checkpoint has shown; problems on standard error."""
    if as_json:
        print_json(found.to_json())
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
