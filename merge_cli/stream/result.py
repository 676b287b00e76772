"""Results of a stream: counts, sums and diagnoses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from merge_cli.methods.contract import Diagnosis
from merge_cli.plan.outputs import Output
from merge_cli.stream.pipeline import Measurements, Pipeline
from merge_cli.stream.records import Record, Tally


@dataclass(frozen=True)
class Outcome:
    """Outcome of merging for one merged model.

    Attributes:
        counts: How often what the method counts occurred.
        sums: Tensor -> what the method summed over it.
        diagnosis: What the method makes of the sums.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    sums: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    diagnosis: Diagnosis = field(default_factory=lambda: Diagnosis({}))


@dataclass(frozen=True)
class StreamResult:
    """Events of a stream.

    Attributes:
        outcomes: Merged model -> what was told of it; usually there is one.
        device: What it ran on.
        exceeds_page_cache: Whether the files would not fit into the page cache, so that what was read was dropped.
        kernels: What computed: ``compiled``, ``numpy`` where nothing was compiled, or ``torch``.
        measured: What was measured before anything was merged.
    """

    outcomes: Mapping[str, Outcome]
    device: str
    exceeds_page_cache: bool
    kernels: str
    measured: Measurements = field(default_factory=Measurements)

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts of the first merged model."""
        return self._first.counts

    @property
    def sums(self) -> Mapping[str, Mapping[str, float]]:
        """Sums over each tensor of the first merged model."""
        return self._first.sums

    @property
    def diagnosis(self) -> Diagnosis:
        """Diagnosis of the first merged model."""
        return self._first.diagnosis

    @property
    def _first(self) -> Outcome:
        return next(iter(self.outcomes.values()))


@dataclass
class Tallies:
    """The tallies of all ranges, for each merged model."""

    _counts: dict[str, Counter[str]] = field(default_factory=dict)
    _sums: dict[str, dict[str, Tally]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Take in what a range of a tensor has given."""
        for output, tally in record.tallies.items():
            self._counts.setdefault(output, Counter()).update(tally.counts)
            if tally.sums:
                self._sums.setdefault(output, {}).setdefault(record.tensor, Tally()).update(tally)

    def outcomes(self, pipeline: Pipeline) -> dict[str, Outcome]:
        """Return what was counted and summed, and what the method makes of it."""
        return {output.name: self._outcome(pipeline, output) for output in pipeline.plan.variants}

    def _outcome(self, pipeline: Pipeline, output: Output) -> Outcome:
        counts = dict(sorted(self._counts.get(output.name, {}).items()))
        tallies = sorted(self._sums.get(output.name, {}).items())
        # Exactly, so that the order of ranges does not change it.
        sums = {name: {key: math.fsum(each.sums[key]) for key in sorted(each.sums)} for name, each in tallies}
        return Outcome(counts, sums, _diagnosis(pipeline, output, sums))


def _diagnosis(pipeline: Pipeline, output: Output, sums: Mapping[str, Mapping[str, float]]) -> Diagnosis:
    """Return what the method makes of its sums and of what it measured over the model."""
    first = next(iter(pipeline.plan.merged), None)
    if first is None:
        return Diagnosis({})
    keys = dict.fromkeys(key for each in sums.values() for key in each)
    totals = {key: math.fsum(each.get(key, 0.0) for each in sums.values()) for key in keys}
    return pipeline.plan.method.diagnose(
        totals, pipeline.whole_model(pipeline.method_stage, output), output.params_of(first)
    )
