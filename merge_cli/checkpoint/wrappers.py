"""Tensor names without the prefixes of wrappers such as torch.compile.

torch.compile, data parallelism and checkpointing keep the model as a part of themselves, so that its state dict has
their attribute in every name, where no loader looks for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from merge_cli.checkpoint.sources import Source
from merge_cli.errors import CheckpointError

# Parts of a name that nothing but a wrapper has, wherever they stand.
_INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_MARKS = ("_orig_mod.", "_wrapped_module.", "_forward_module.")
# What a part of a model may be called as well, so that it counts only where every name begins so.
_LEADING = ("module.", "base_model.model.")


def without_wrappers(
    root: Path, tensors: Mapping[str, Source], tied: Mapping[str, str]
) -> tuple[Mapping[str, Source], Mapping[str, str], str | None]:
    """Take wrappers out of the names of a checkpoint's tensors.

    Args:
        root: Where the checkpoint is.
        tensors: Its tensors.
        tied: Further names of tied tensors.

    Returns:
        Tensors and tied names by their plain names, and a note on what was taken off, None where nothing was.

    Raises:
        CheckpointError: If two tensors have the same name without it.
    """
    names = {name: plain_name(name) for name in (*tensors, *tied)}
    taken = dict.fromkeys(f"{part}." for name, plain in names.items() if name != plain for part in _INNER.findall(name))
    while (prefix := _leading(names.values())) is not None:
        names = {name: plain.removeprefix(prefix) for name, plain in names.items()}
        taken[prefix] = None
    if not taken:
        return tensors, tied, None
    first: dict[str, str] = {}
    for name, plain in names.items():
        if first.setdefault(plain, name) != name:
            raise CheckpointError(
                f"{root} holds '{first[plain]}' and '{name}', which without a wrapper's prefix are one",
                hint="save the model again from what is inside of the wrapper",
            )
    note = f"{' and '.join(taken)} taken off the names of its tensors, which a wrapper around the model put there"
    plain_tensors = {names[name]: tensor.named(names[name]) for name, tensor in tensors.items()}
    return plain_tensors, {names[name]: names[other] for name, other in tied.items()}, note


def plain_name(name: str) -> str:
    """Return a name without the parts that nothing but a wrapper has."""
    return _INNER.sub("", name) if any(mark in name for mark in _MARKS) else name


def plain_pattern(pattern: str) -> str:
    """Return a pattern for names as the files of a wrapped model have them in the form that fits the plain names."""
    pattern = plain_name(pattern)
    while (prefix := _leading([pattern])) is not None:
        pattern = pattern.removeprefix(prefix)
    return pattern


def _leading(names: Collection[str]) -> str | None:
    """Return the wrapper's prefix that every name has, None where there is none."""
    longer = (prefix for prefix in _LEADING if all(name.startswith(prefix) and name != prefix for name in names))
    return next(longer, None) if names else None
