"""Records of finished ranges: what was written of a tensor, counted and summed, and the checksums of the bytes."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

# Beyond it array indices end.
_MOST_COUNT = 2**63
# Far beyond what float32 numbers add up to, and few of them together are still a number.
_MOST_SUM = 1e290

# First element and number of elements.
Span = tuple[int, int]


@dataclass
class Tally:
    """Counts and sums from merging one range of a tensor."""

    counts: Counter[str] = field(default_factory=Counter)
    sums: dict[str, array[float]] = field(default_factory=dict)

    def update(self, other: Tally) -> None:
        """Take in what another one has."""
        self.counts.update(other.counts)
        for key, values in other.sums.items():
            self.sums.setdefault(key, array("d")).extend(values)

    def to_json(self) -> list[Any]:
        """Return it as plain data; floats keep every bit."""
        return [dict(self.counts), {key: list(values) for key, values in self.sums.items()}]

    @staticmethod
    def from_json(content: Sequence[Any]) -> Tally:
        """Return what :meth:`to_json` gave.

        Raises:
            ValueError: If it is nothing of the kind; TypeError, AttributeError or OverflowError likewise.
        """
        counts, sums = content
        tally = Tally(Counter(dict(counts)), {key: array("d", values) for key, values in sums.items()})
        if not all(abs(value) <= _MOST_SUM for values in tally.sums.values() for value in values):
            raise ValueError("not a tally")
        if not all(map(_is_count, tally.counts.values())):
            raise ValueError("not a tally")
        return tally


@dataclass(frozen=True)
class Record:
    """A finished range: ``count`` elements of a tensor from element ``start``.

    Attributes:
        tensor: Its name.
        start: Its first element.
        count: How many elements.
        tallies: Merged model -> what was counted and summed in it.
        checksums: Output -> checksum of the bytes written of it there.
    """

    tensor: str
    start: int
    count: int
    tallies: Mapping[str, Tally]
    checksums: Mapping[str, int]

    def to_json(self) -> list[Any]:
        """Return it as plain data; floats keep every bit."""
        tallies = {output: tally.to_json() for output, tally in self.tallies.items()}
        return [self.tensor, self.start, self.count, tallies, dict(self.checksums)]

    @staticmethod
    def from_json(content: Sequence[Any]) -> Record:
        """Return what :meth:`to_json` gave.

        Raises:
            ValueError: If it is nothing of the kind.
        """
        try:
            tensor, start, count, tallies, checksums = content
            tallies = {output: Tally.from_json(tally) for output, tally in tallies.items()}
            checksums = dict(checksums.items())
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError("not a record") from error
        if not isinstance(tensor, str) or not all(map(_is_count, (start, count, *checksums.values()))):
            raise ValueError("not a record")
        return Record(tensor, start, count, tallies, checksums)


def finished_spans(records: Iterable[Record]) -> dict[str, list[Span]]:
    """Return tensor -> what of it is finished, as (start, count) in order and joined where they touch."""
    found: dict[str, list[Span]] = {}
    for record in sorted(records, key=lambda record: (record.tensor, record.start)):
        spans = found.setdefault(record.tensor, [])
        if spans and sum(spans[-1]) >= record.start:
            start = spans[-1][0]
            spans[-1] = (start, max(sum(spans[-1]), record.start + record.count) - start)
        else:
            spans.append((record.start, record.count))
    return found


def gaps(spans: Iterable[Span], numel: int) -> list[Span]:
    """Return what lies between spans, and before and after them, of a tensor of ``numel`` elements."""
    edges = [(0, 0), *spans, (numel, 0)]
    return [(sum(one), other[0] - sum(one)) for one, other in pairwise(edges) if other[0] > sum(one)]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_COUNT
