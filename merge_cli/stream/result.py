"""What a stream tells when it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merge_cli.methods.contract import Diagnosis
from merge_cli.stream.stages import Chain
from merge_cli.stream.worker import Worker


@dataclass(frozen=True)
class StreamResult:
    """What happened on the way.

    Attributes:
        counts: How often what the method counts occurred.
        device: What it ran on.
        sums: Tensor -> what the method summed over it.
        diagnosis: What the method makes of the sums.
    """

    counts: dict[str, int]
    device: str
    sums: dict[str, dict[str, float]]
    diagnosis: Diagnosis


def added_up(workers: Sequence[Worker]) -> dict[str, dict[str, float]]:
    """Add up what the method summed over each tensor, exactly, so that threads do not change it."""
    names = sorted({name for worker in workers for name, sums in worker.sums.items() if sums})
    found: dict[str, dict[str, float]] = {}
    for name in names:
        each = [worker.sums.get(name, {}) for worker in workers]
        keys = dict.fromkeys(key for sums in each for key in sums)
        found[name] = {key: math.fsum(x for sums in each for x in sums.get(key, ())) for key in keys}
    return found


def diagnosis(chain: Chain, sums: Mapping[str, Mapping[str, float]]) -> Diagnosis:
    """Return what the method makes of its sums and of what it measured over the model."""
    first = next(iter(chain.plan.merged), None)
    if first is None:
        return Diagnosis({})
    keys = dict.fromkeys(key for each in sums.values() for key in each)
    totals = {key: math.fsum(each.get(key, 0.0) for each in sums.values()) for key in keys}
    return chain.plan.method.diagnose(totals, chain.whole.get(chain.method_stage), first.params)
