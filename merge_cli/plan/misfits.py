"""Errors on checkpoints whose tensors do not fit each other, with a block for the recipe."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from merge_cli.checkpoint import Checkpoint, Source
from merge_cli.checkpoint.layers import over_layers
from merge_cli.errors import CheckpointError
from merge_cli.plan.common_names import find_prefix
from merge_cli.plan.exclusions import entry_of, literal
from merge_cli.recipe import Exclusion
from merge_cli.text import count_of, listed

# Lines of an error that name tensors; the rest is counted.
_MOST_LINES = 5
# A block of more patterns would not be read; nor do such models belong together.
_MOST_PATTERNS = 20
# Each is compared with all names.
_MOST_TRIED = 100
# Parts of the names of tensors with a row for each entry of the vocabulary, and of those with a row for each class.
_VOCABULARY = ("embed", "lm_head", "wte", "shared")
HEADS = ("classif", "score", "qa_outputs", "head")


def check_fit(
    parts: Sequence[Checkpoint], names: Sequence[str], donor: Checkpoint, given: Sequence[Exclusion] = ()
) -> None:
    """Refuse checkpoints that lack a tensor to be merged, or have it in another shape.

    Args:
        parts: The checkpoints that are merged, the reference first.
        names: Names of the tensors to be merged.
        donor: Where excluded tensors come from by default.
        given: What the recipe excludes already.

    Raises:
        CheckpointError: Naming some of the tensors, and how to merge the others.
    """
    wrong: dict[str, str] = {}
    for name in names:
        found = [(checkpoint.label, checkpoint.find(name)) for checkpoint in parts]
        lacking = [label for label, tensor in found if tensor is None]
        having = [(label, tensor) for label, tensor in found if tensor is not None]
        if lacking:
            wrong[name] = f"is missing in {', '.join(lacking)}"
        elif len({(tensor.shape, tensor.dtype.is_float) for _, tensor in having}) > 1:
            wrong[name] = "is " + ", ".join(f"{_shape(tensor)} in {label}" for label, tensor in having)
    if wrong:
        _check_none_lost(parts, list(wrong))
        strange = _stranger_hint(parts, names)
        lines = first_few([f"  {name} {what}" for name, what in wrong.items()], most=1 if strange else _MOST_LINES)
        raise CheckpointError(
            f"the checkpoints differ in {count_of(len(wrong), 'tensor')}:\n{lines}",
            hint=strange or _exclusion_hint(parts, names, list(wrong), donor, given),
        )


def _check_none_lost(parts: Sequence[Checkpoint], wrong: Sequence[str]) -> None:
    for part in parts:
        lost = [name for name in wrong if (held := part.find(name)) is not None and _is_remains(name, held)]
        if lost:
            raise _without_elements(lost, part.label)


def check_filled(names: Iterable[str], held: Callable[[str], Source]) -> tuple[str, ...]:
    """Refuse tensors without elements that are the remains of weights; return a warning on other empty ones.

    DeepSpeed's third stage leaves each process a part of every weight; saved without gathering, weights and biases of
    whatever shape are vectors of no elements. A weight that is empty by its configuration has sizes beside the zero.

    Args:
        names: Names of all tensors of the output.
        held: Gives the tensor of a name.

    Raises:
        CheckpointError: With names.
    """
    empty = [name for name in names if 0 in held(name).shape]
    lost = [name for name in empty if _is_remains(name, held(name))]
    if lost:
        raise _without_elements(lost)
    return (f"{listed(empty, most=3)}: no elements in any model",) if empty else ()


def _is_remains(name: str, tensor: Source) -> bool:
    return tensor.shape == (0,) and tensor.dtype.is_float and name.rpartition(".")[2] in ("weight", "bias")


def _without_elements(lost: Sequence[str], where: str = "all checkpoints") -> CheckpointError:
    return CheckpointError(
        f"{count_of(len(lost), 'weight')} with no elements in {where}: {listed(lost, most=_MOST_LINES)}",
        hint="the training (DeepSpeed ZeRO-3) saved them without gathering: run zero_to_fp32.py, or train with "
        "stage3_gather_16bit_weights_on_model_save",
    )


def first_few(lines: Sequence[str], *, most: int = _MOST_LINES) -> str:
    """Join lines, of which the last counts those that are left out."""
    more = [f"  and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*lines[:most], *more])


def _shape(tensor: Source) -> str:
    shape = " x ".join(map(str, tensor.shape)) or "a scalar"
    return shape if tensor.dtype.is_float else f"{shape} of {tensor.dtype.torch_name}"


def _stranger_hint(parts: Sequence[Checkpoint], names: Sequence[str]) -> str | None:
    """Return a hint where a checkpoint has hardly a name in common with the first one, which no exclusion can fix."""
    first = parts[0]
    own = [name for name in names if first.find(name) is not None]
    for part in parts[1:]:
        if 2 * sum(part.find(name) is not None for name in own) >= len(own):
            continue
        prefix = find_prefix(part, first)
        if prefix is not None:
            return (
                f"names in {prefix.longer.label} seem to have '{prefix.text}' before those in {prefix.shorter.label}, "
                "but not all or not in the same shapes: save both the same way, with save_pretrained of the same class"
            )
        said = [_architecture(each) for each in (part, first)]
        kinds = f"{part.label} is {said[0]}, {first.label} is {said[1]}; " if all(said) and said[0] != said[1] else ""
        return (
            f"{kinds}{part.label} has less than half of the tensors of {first.label}: is it of the same architecture, "
            "and saved the same way? save_pretrained of the same class gives the same names"
        )
    return None


def _architecture(checkpoint: Checkpoint) -> str:
    named = checkpoint.config.get("architectures")
    return listed([str(each)[:100] for each in named], most=2) if isinstance(named, list) else ""


def _exclusion_hint(
    parts: Sequence[Checkpoint],
    names: Sequence[str],
    wrong: Sequence[str],
    donor: Checkpoint,
    given: Sequence[Exclusion],
) -> str:
    """Give what can be pasted into the recipe."""
    sources: dict[str, list[str]] = {}
    for name in wrong:
        holders = [part.label for part in parts if part.find(name) is not None]
        sources.setdefault("" if donor.find(name) is not None else holders[0], []).append(name)
    entries = [entry_of(each.pattern, each.source or "", drop=each.drop) for each in given]
    for source, group in sources.items():
        for pattern in patterns(names, group):
            entries.append(
                entry_of(pattern, source) + (f"  # from {donor.label}" if not source else "  # or drop: true")
            )
    if len(entries) > _MOST_PATTERNS:
        return "so many differ that the models hardly belong together; are they fine-tunes of one base?"
    block = "\n".join(["exclude:", *(f"- {entry}" for entry in entries)])
    what = "in place of its exclude" if given else "into the recipe"
    return f"{_reason(parts, wrong)}put this {what} to copy them unmerged:\n{block}"


def exclusion_block(names: Iterable[str], wrong: Sequence[str], source: str, given: Sequence[Exclusion] = ()) -> str:
    """Return an ``exclude:`` for the recipe by which tensors are copied from one model, with what it excludes already.

    Args:
        names: Names of the tensors that are merged otherwise.
        wrong: Those that are not to be.
        source: The model that they are copied from.
        given: What the recipe excludes already.
    """
    entries = [entry_of(each.pattern, each.source or "", drop=each.drop) for each in given]
    entries += [entry_of(pattern, source) for pattern in patterns(names, wrong)]
    return "\n".join(["exclude:", *(f"- {entry}" for entry in entries)])


def _reason(parts: Sequence[Checkpoint], wrong: Sequence[str]) -> str:
    """Say why the tensors differ, where they tell."""
    if any(part in name and "position" not in name for name in wrong for part in _VOCABULARY):
        return "the vocabularies differ, or one model has its own head; "
    if all(any(part in name for part in HEADS) for name in wrong) and _rows_differ(parts, wrong):
        return "the models have heads for other classes; "
    return ""


def _rows_differ(parts: Sequence[Checkpoint], wrong: Sequence[str]) -> bool:
    """Tell whether tensors have other numbers of rows in each model, and are else alike."""
    found = [{tensor.shape for part in parts if (tensor := part.find(name)) is not None} for name in wrong]
    return all(len(shapes) > 1 and all(shapes) and len({shape[1:] for shape in shapes}) == 1 for shapes in found)


def patterns(names: Iterable[str], wrong: Sequence[str]) -> list[str]:
    """Return few patterns that cover the wrong names and no others: one for all layers, or for a whole module."""
    others = set(names) - set(wrong)
    found: list[str] = []
    layers: dict[str, list[str]] = {}
    for name in wrong:
        layers.setdefault(over_layers(literal(name)), []).append(name)
    groups = dict(_checked(layers, others)) if len(layers) <= _MOST_TRIED else {}
    if not 0 < len(groups) <= _MOST_TRIED:
        return [literal(name) for name in wrong]
    while groups:
        first = next(iter(groups))
        pattern = next((each for each in _modules(first) if _pays(each, groups, others)), first)
        found.append(pattern)
        groups = {each: True for each in groups if each != first and not fnmatch.fnmatchcase(each, pattern)}
    return found


def _checked(layers: Mapping[str, Sequence[str]], others: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield the patterns over layers that cover no other name, and the single names of those that do."""
    for pattern, covered in layers.items():
        if len(covered) > 1 and not _covers(pattern, others):
            yield pattern, True
        else:
            yield from ((literal(name), True) for name in covered)


def _modules(pattern: str) -> Iterator[str]:
    """Yield patterns for all of a module, the outermost first."""
    for dot in re.finditer(r"\.", pattern):
        yield pattern[: dot.start()] + ".*"


def _pays(module: str, groups: Iterable[str], others: Iterable[str]) -> bool:
    """Tell whether a module's pattern replaces several others and covers nothing else."""
    return sum(fnmatch.fnmatchcase(each, module) for each in groups) > 1 and not _covers(module, others)


def _covers(pattern: str, names: Iterable[str]) -> bool:
    matches = re.compile(fnmatch.translate(pattern)).match
    return any(matches(name) for name in names)
