"""A model's parameters under the names that they have in its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from merge_cli.checkpoint import Checkpoint


class StoredNames:
    """Maps a model's parameters to the tensors of its files, which may have other names, or be parts of one.

    Args:
        model: As loaded.
        checkpoint: What it was loaded from.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._prefix = str(getattr(model, "base_model_prefix", "")) + "."
        aliases: dict[Tensor, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            aliases.setdefault(parameter, []).append(name)
        self._aliases = {names[0]: names for names in aliases.values()}

    def stored(self, name: str, values: Tensor) -> dict[str, Tensor]:
        """Return values of a parameter's shape the way the files hold it: under each of its names, in its parts.

        Args:
            name: First name of the parameter in the model.
            values: Of its shape; may be on the meta device, to learn the names alone.
        """
        found: dict[str, Tensor] = {}
        for alias in self._aliases[name]:
            for other, part in _reverted(self._model, alias, values).items():
                for candidate in self._candidates(other):
                    held = self._checkpoint.tied.get(candidate, candidate)
                    place = self._checkpoint.tensors.get(held)
                    if place is not None and place.shape == tuple(part.shape):
                        found[held] = part
                        break
        return found

    def _candidates(self, name: str) -> Iterator[str]:
        """Yield the names that the same tensor has in files of the base model alone, and in very old files."""
        for candidate in (name, self._prefix + name, name.removeprefix(self._prefix)):
            yield candidate
            yield candidate.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _reverted(model: Any, name: str, values: Tensor) -> Mapping[str, Tensor]:
    """Undo what transformers 5 does to names and tensors when it loads a model; renaming, splitting, transposing."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return {name: values}
    reverted: Mapping[str, Tensor] = revert_weight_conversion(model, {name: values})
    return reverted
