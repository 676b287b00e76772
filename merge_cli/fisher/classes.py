"""Mapping of the data's labels to the model's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge_cli.fisher.batching import Unusable
from merge_cli.fisher.likelihood import IGNORED


def class_of(row: Mapping[str, Any], column: str | None, known: Classes) -> Tensor:
    """Return the model's number of a row's class; -100 where the row does not tell."""
    if column is None or row[column] is None or row[column] == -1:
        return torch.tensor(IGNORED)
    return torch.tensor(known.index(row[column]))


class Classes:
    """The model's classes, and which of them a label in the data means.

    Args:
        config: The model's configuration.
        names: What the data calls its numbers; they count where the model knows one of them, since the two may number
            the same classes in different orders.
    """

    def __init__(self, config: Any, names: Sequence[str]) -> None:
        self._count = int(config.num_labels)
        self._by_name: Mapping[str, int] = config.label2id or {}
        self._names = names if any(name in self._by_name for name in names) else ()

    def index(self, label: Any) -> int:
        """Return the model's number of a label; one that is none of them makes the row unusable."""
        if self._names and isinstance(label, int) and 0 <= label < len(self._names):
            label = self._names[label]
        if isinstance(label, str):
            label = self._by_name.get(label, int(label) if label.isdigit() and not self._names else -1)
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if not isinstance(label, int) or not 0 <= label < self._count:
            raise Unusable(f"with a label that is none of the model's {self._count}")
        return int(label)
