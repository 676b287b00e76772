"""Batching of encoded rows, and the count of rows that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from merge_cli.errors import CheckpointError
from merge_cli.fisher.data import Rows
from merge_cli.fisher.likelihood import IGNORED
from merge_cli.fisher.objective import Batch

# Batches whose examples are sorted by length before they are formed, so that less of them is padding.
_WINDOW = 8


@dataclass(frozen=True)
class Example:
    """One encoded row; ``label`` is -100 or all -100 where its true label is not known."""

    key: int
    inputs: Mapping[str, Tensor]
    label: Tensor


@dataclass
class Tally:
    """Counts of rows, used and not; filled while :func:`encode_rows` is iterated.

    Attributes:
        used: Examples encoded.
        unusable: Why rows could not be used -> how many.
        unlabelled: Examples among the used ones without a true label.
        cut: Examples among the used ones that were cut off.
        whole: Whether all rows were looked at.
    """

    used: int = 0
    unusable: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    cut: int = 0
    whole: bool = False
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def drop(self, reason: str) -> None:
        """Count a row that cannot be used."""
        self.unusable[reason] = self.unusable.get(reason, 0) + 1

    @property
    def seen(self) -> int:
        """Rows looked at."""
        return self.used + sum(self.unusable.values())

    def take(self, example: Example, *, cut: bool) -> None:
        """Count an example and mix it into the fingerprint."""
        self.used += 1
        self.cut += cut
        self.unlabelled += bool((example.label == IGNORED).all())
        for tensor in (*example.inputs.values(), example.label):
            self.digest.update(tensor.contiguous().numpy().tobytes())


class Unusable(Exception):
    """A row that cannot be used; the message says why in a few words, for counting."""


@dataclass(frozen=True)
class Encoded:
    """An encoded row.

    Attributes:
        inputs: Keyword arguments of the model; the first one's length is the example's.
        label: The true label, of the example or of each token; -100 where there is none.
        cut: Whether the text was too long.
    """

    inputs: dict[str, Tensor]
    label: Tensor
    cut: bool = False


Encode = Callable[[Mapping[str, Any], int], Encoded]


def encode_rows(rows: Rows, encode: Encode, tally: Tally, *, examples: int | None, labelled: bool) -> Iterator[Example]:
    """Encode rows in order until there are ``examples`` of them.

    Args:
        rows: The data.
        encode: Of a row and its number.
        tally: Counts what becomes of the rows.
        examples: How many are wanted; None for all.
        labelled: Whether a row without a true label cannot be used.

    Raises:
        CheckpointError: If no row can be used.
    """
    for key, row in enumerate(rows):
        if examples is not None and tally.used >= examples:
            return
        try:
            encoded = encode(row, key)
            if labelled and bool((encoded.label == IGNORED).all()):
                raise Unusable("without a label")
        except Unusable as reason:
            tally.drop(str(reason))
            continue
        example = Example(key, encoded.inputs, encoded.label)
        tally.take(example, cut=encoded.cut)
        yield example
    tally.whole = True
    if tally.used == 0:
        why = ", ".join(f"{count} {reason}" for reason, count in tally.unusable.items())
        raise CheckpointError(f"no row of the data can be used: {why}", hint="check the columns")


def batches(examples: Iterator[Example], *, size: int, pad: int, device: torch.device) -> Iterator[Batch]:
    """Form batches of examples of similar length; the same examples always form the same batches."""
    window: list[Example] = []
    for example in examples:
        window.append(example)
        if len(window) == size * _WINDOW:
            yield from _form(window, size, pad, device)
            window = []
    yield from _form(window, size, pad, device)


def _form(window: list[Example], size: int, pad: int, device: torch.device) -> Iterator[Batch]:
    ordered = sorted(window, key=lambda example: -next(iter(example.inputs.values())).shape[0])
    for start in range(0, len(ordered), size):
        some = ordered[start : start + size]
        inputs = {
            name: _stack([example.inputs[name] for example in some], pad if name.endswith("input_ids") else 0).to(
                device
            )
            for name in some[0].inputs
        }
        labels = _stack([example.label for example in some], IGNORED).to(device)
        yield Batch(inputs, tuple(example.key for example in some), labels)


def _stack(tensors: Sequence[Tensor], value: int) -> Tensor:
    if tensors[0].dim() != 1:
        return torch.stack(list(tensors))
    return pad_sequence(list(tensors), batch_first=True, padding_value=value)
