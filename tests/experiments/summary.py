"""What the runs show, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from tests.experiments.runs import FAMILIES, GRID, REGIMES
from tests.experiments.statistics import area_under_curve, interval

Runs = Sequence[dict[str, Any]]
_TESTED = (
    *("gm auto, 1", "gm base, 1", "gm none, 1", "gm shares, 1", "gm shares, 1/T", "gm shares box, 1"),
    *("gm none mean, 1", "gm shares calibrated, 1"),
    *("gm auto, tuned", "gm shares, tuned", "gm none, tuned", "gm shares calibrated, tuned"),
)
_AGAINST = ("average", "fisher average", "task arithmetic, tuned", "fisher average, tuned")
_STEPS = (0.0, 0.25, 0.5, 1.0, 1.5, 3.0, float("inf"))


def summary(runs: Runs) -> str:
    """Tables and sentences for every family and regime that was run."""
    return "\n".join(_lines(runs))


def _lines(runs: Runs) -> Iterator[str]:
    for family in FAMILIES:
        own = [run for run in runs if run["family"] == family]
        if not own:
            continue
        for regime in REGIMES:
            yield from _regime(family, regime, [run["regimes"][regime] for run in own])
        for regime in own[0]["removal"]:
            yield from _removal(family, regime, [run["removal"][regime] for run in own])
        yield from _predictions(family, [run["regimes"] for run in own])
    yield from _overview(runs)


def _overview(runs: Runs) -> Iterator[str]:
    """The least that there is to know of every family and regime, one row each."""
    yield "\n## Overview: gradient matching as it is by default, at weight 1, and tuned\n"
    yield "TA is task arithmetic; the spread is that of the validation loss over 20 weights.\n"
    yield "| experts | average | tuned TA | default | - average | - tuned TA | tuned - tuned TA | spread, TA's |"
    yield "|---|---|---|---|---|---|---|---|"
    for family in FAMILIES:
        for regime in REGIMES:
            own = [run["regimes"][regime] for run in runs if run["family"] == family]
            if own:
                yield "| " + " | ".join([f"{family}, {regime}", *_figures(own)]) + " |"


def _figures(runs: Runs) -> list[str]:
    def losses(name: str) -> list[float]:
        return [run["models"][name]["loss"] for run in runs]

    def less(name: str, other: str) -> str:
        return str(interval([a - b for a, b in zip(losses(name), losses(other), strict=True)]))

    def spread(name: str) -> float:
        return sum(_spread(run["curves"][name]) for run in runs) / len(runs)

    plain = [f"{sum(losses(name)) / len(runs):.3f}" for name in ("average", "task arithmetic, tuned", "gm auto, 1")]
    pairs = [
        less("gm auto, 1", "average"),
        less("gm auto, 1", "task arithmetic, tuned"),
        less("gm auto, tuned", "task arithmetic, tuned"),
    ]
    return [*plain, *pairs, f"{spread('gm auto'):.2f}, {spread('task arithmetic'):.2f}"]


def _regime(family: str, regime: str, runs: Runs) -> Iterator[str]:
    yield f"\n## {family}, {regime} experts, {len(runs)} seeds\n"
    yield f"* gratio {interval([sum(run['gratio']) / 3 for run in runs])}"
    shift = interval([sum(run["shift"]) / 3 for run in runs])
    yield f"* distance of experts from the base, relative to its norm: {shift}"
    whole, own = [run["factors"][0] for run in runs], [sum(run["factors"][1:]) / 3 for run in runs]
    yield f"* curvature along task vectors over what its diagonal says: H_0 {interval(whole)}, H_t {interval(own)}"
    yield "\n| model | test loss | accuracy | control's loss | mismatch | residual |\n|---|---|---|---|---|---|"
    for name, first in runs[0]["models"].items():
        mean = {key: sum(run["models"][name][key] for run in runs) / len(runs) for key in first}
        yield (
            f"| {name} | {mean['loss']:.3f} | {100 * mean['accuracy']:.1f} % | {mean['control']:.3f} "
            f"| {mean['mismatch']:.0f} | {mean['residual']:.0f} |"
        )
    yield "\nPaired differences in test loss; below 0, the row's is less than the column's:\n"
    yield "| | " + " | ".join(_AGAINST) + " |\n" + "|---" * (len(_AGAINST) + 1) + "|"
    for name in _TESTED:
        losses = [[run["models"][name]["loss"] - run["models"][other]["loss"] for run in runs] for other in _AGAINST]
        yield f"| {name} | " + " | ".join(str(interval(each)) for each in losses) + " |"
    yield f"\nSpread of the validation loss over {GRID} values:"
    for name in runs[0]["curves"]:
        yield f"* {name}: {interval([_spread(run['curves'][name]) for run in runs])}"
    yield "\nSpearman of test loss over the merged models:"
    for key in runs[0]["rank"]:
        yield f"* with {key}: {interval([run['rank'][key] for run in runs])}"


def _spread(curve: Sequence[tuple[float, float]]) -> float:
    losses = [loss for _, loss in curve]
    return max(losses) - min(losses)


def _removal(family: str, regime: str, runs: Runs) -> Iterator[str]:
    yield f"\n## {family}, removal by an {regime} expert, {len(runs)} seeds\n"
    target, control = (sum(run["before"][i] for run in runs) / len(runs) for i in (1, 0))
    yield f"Before: target {target:.3f}, control {control:.3f}. The target's loss where the control's is 5 % higher:\n"
    for name in runs[0]["at equal control"]:
        rise = interval([run["at equal control"][name] - run["before"][1] for run in runs])
        gap = interval([run["at equal control"][name] - run["at equal control"]["negation"] for run in runs])
        yield f"* {name}: {rise}; compared with negation {gap}"
    yield "\nAt weight 1:\n"
    for name in runs[0]["at weight 1"]:
        moved = [interval([run["at weight 1"][name][i] - run["before"][i] for run in runs]) for i in (1, 0)]
        yield f"* {name}: target {moved[0]}, control {moved[1]}"
    yield f"* gm: {interval([100 * run['clipped'] for run in runs])} % of the coordinates clipped"


def _predictions(family: str, runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"\n## {family}: do the diagnostics predict failures?\n"
    merges = [each for run in runs for regime in REGIMES for each in run[regime]["diagnosed"]]
    plain = [each for each in merges if each["anchor"] == "base" and each["weight"] == 1.0]
    for failure in ("below base", "below average"):
        failed = [each[failure] for each in merges]
        area = area_under_curve([each["extrapolation"] for each in merges], failed)
        yield f"* {sum(failed)} of {len(failed)} merges {failure}; AUC of extrapolation {_show(area)}"
        area = area_under_curve([-each["gratio"] for each in plain], [each[failure] for each in plain])
        count = sum(each[failure] for each in plain)
        yield f"  * with anchor base and weight 1, {count} of {len(plain)}; AUC of a low gratio {_show(area)}"
        for low, high in pairwise(_STEPS):
            some = [each[failure] for each in merges if low <= each["extrapolation"] < high]
            if some:
                yield f"  * extrapolation from {low:g} to {high:g}: {sum(some)} of {len(some)}"


def _show(area: float | None) -> str:
    return "-" if area is None else f"{area:.2f}"
