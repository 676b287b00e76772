"""What a stream tells when it is done."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from merge_cli.methods.contract import Diagnosis
from merge_cli.stream.journal import Tally
from merge_cli.stream.pipeline import Chain


@dataclass(frozen=True)
class StreamResult:
    """What happened on the way.

    Attributes:
        counts: How often what the method counts occurred.
        device: What it ran on.
        sums: Tensor -> what the method summed over it.
        diagnosis: What the method makes of the sums.
        crowded: Whether the files would have taken too much of the memory, so that what was read was dropped.
    """

    counts: dict[str, int]
    device: str
    sums: dict[str, dict[str, float]]
    diagnosis: Diagnosis
    crowded: bool


@dataclass
class Totals:
    """The tallies of all ranges."""

    counts: Counter[str] = field(default_factory=Counter)
    _sums: dict[str, dict[str, array[float]]] = field(default_factory=dict)

    def add(self, tensor: str, tally: Tally) -> None:
        """Take in what a range of a tensor has given."""
        self.counts.update(tally.counts)
        if tally.sums:
            own = self._sums.setdefault(tensor, {})
            for key, values in tally.sums.items():
                own.setdefault(key, array("d")).extend(values)

    def sums(self) -> dict[str, dict[str, float]]:
        """Add up what was summed over each tensor, exactly, so that the order of ranges does not change it."""
        return {name: {key: math.fsum(own[key]) for key in sorted(own)} for name, own in sorted(self._sums.items())}


def diagnosis(chain: Chain, sums: Mapping[str, Mapping[str, float]]) -> Diagnosis:
    """Return what the method makes of its sums and of what it measured over the model."""
    first = next(iter(chain.plan.merged), None)
    if first is None:
        return Diagnosis({})
    keys = dict.fromkeys(key for each in sums.values() for key in each)
    totals = {key: math.fsum(each.get(key, 0.0) for each in sums.values()) for key in keys}
    return chain.plan.method.diagnose(totals, chain.whole.get(chain.method_stage), first.params)
