"""Choice of the tensors that are measured, in each pass over the data."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from merge_cli.checkpoint import Checkpoint
from merge_cli.errors import RecipeError
from merge_cli.fisher.hf_model import Loaded
from merge_cli.fisher.parameter_names import StoredNames
from merge_cli.fisher.settings import FisherSettings
from merge_cli.text import listed


@dataclass(frozen=True)
class Choice:
    """Tensors that are measured.

    Attributes:
        shapes: Tensor name in the files -> shape, in the checkpoint's order.
        parts: The model's parameters, by name, in groups of about the same size.
        found_in: Tensor name in the files -> part and parameter that hold it.
    """

    shapes: dict[str, tuple[int, ...]]
    parts: list[list[str]]
    found_in: dict[str, tuple[int, str]]


def choose(settings: FisherSettings, loaded: Loaded, checkpoint: Checkpoint, names: StoredNames) -> Choice:
    """Find the parameters that hold wanted tensors, and distribute them over the parts.

    Raises:
        RecipeError: If there are none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    holder: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name, parameter in loaded.model.named_parameters():
        for key, values in names.stored(name, parameter.detach().to("meta")).items():
            if not settings.only or any(fnmatchcase(key, wanted) for wanted in settings.only):
                shapes[key], holder[key], sizes[name] = tuple(values.shape), name, parameter.numel()
    if not shapes:
        what = f"--only {listed(settings.only)} matches" if settings.only else "the model's parameters match"
        raise RecipeError(
            f"{what} no tensor of {settings.model}", hint=f"there are {listed(checkpoint.tensors, most=4)}"
        )
    parts: list[list[str]] = [[] for _ in range(min(settings.parts, len(sizes)))]
    filled = [0] * len(parts)
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        least = filled.index(min(filled))
        parts[least].append(name)
        filled[least] += sizes[name]
    part_of = {name: number for number, part in enumerate(parts) for name in part}
    return Choice(
        {key: shapes[key] for key in checkpoint.tensors if key in shapes},
        parts,
        {key: (part_of[name], name) for key, name in holder.items()},
    )
