"""Results of the demonstration, as data, tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from merge_cli.demo.byte_lm import Score


@dataclass(frozen=True)
class Row:
    """A model and how it does.

    Attributes:
        name: Its folder, relative to the demonstration's.
        title: For the table.
        chosen: ``trained``, ``untuned``, or what was chosen on validation data, such as ``weight 0.4``.
        scores: Domain -> score on test data.
        mean: Mean over the experts' domains, on test data.
        mismatch: Gradient mismatch to joint training; None where it was not measured.
        extrapolation: As gradient matching diagnoses it; None for other methods.
    """

    name: str
    title: str
    chosen: str
    scores: Mapping[str, Score]
    mean: Score
    mismatch: float | None = None
    extrapolation: float | None = None


@dataclass(frozen=True)
class Curve:
    """A method's loss on validation data, by the number that was tuned.

    Attributes:
        title: The method.
        place: The number's place in the recipe.
        points: Value, mean validation loss over the experts' domains.
    """

    title: str
    place: str
    points: tuple[tuple[float, float], ...]

    @property
    def spread(self) -> float:
        """Largest less smallest loss."""
        losses = [loss for _, loss in self.points]
        return max(losses) - min(losses)


@dataclass(frozen=True)
class Removal:
    """Test losses on the domain that was to be removed, and on the one that was to stay."""

    name: str
    title: str
    chosen: str
    target: Score
    control: Score


@dataclass(frozen=True)
class Table:
    """A table to print."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DemoReport:
    """Results of the demonstration.

    Attributes:
        folder: Where its files are.
        domains: Name -> description; the base's own first, then the experts'.
        rows: Every model.
        curves: Every method with a number to choose.
        removal: The base and what removal made of it.
        notes: What the numbers of this run say, in sentences.
        warnings: What the merges warned of.
        seconds: How long it took.
    """

    folder: str
    domains: Mapping[str, str]
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    removal: tuple[Removal, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)

    @property
    def tables(self) -> tuple[Table, ...]:
        """The report's tables, in the order to print them in."""
        return _main_table(self), _curve_table(self.curves), _removal_table(self)


def _main_table(report: DemoReport) -> Table:
    control, *experts = report.domains
    headings = ("model", "chosen", *experts, "mean", "accuracy", control, "mismatch")
    rows = tuple(
        (
            row.title,
            row.chosen,
            *(f"{row.scores[domain].loss:.3f}" for domain in experts),
            f"{row.mean.loss:.3f}",
            f"{100 * row.mean.accuracy:.1f} %",
            f"{row.scores[control].loss:.3f}",
            "" if row.mismatch is None else f"{row.mismatch:.0f}",
        )
        for row in report.rows
    )
    return Table("Loss on held-out text (nats per character; accuracy is the experts' domains' mean)", headings, rows)


def _curve_table(curves: Sequence[Curve]) -> Table:
    count = max((len(curve.points) for curve in curves), default=0)
    headings = ("method", "number", *(f"choice {i + 1}" for i in range(count)), "spread")
    rows = tuple(
        (
            curve.title,
            curve.place.rpartition(".")[2],
            *(f"{loss:.3f} at {value:g}" for value, loss in curve.points),
            f"{curve.spread:.3f}",
        )
        for curve in curves
    )
    return Table("Mean loss on validation text, by the number that was chosen there", headings, rows)


def _removal_table(report: DemoReport) -> Table:
    control, target = list(report.domains)[:2]
    rows = tuple(
        (each.title, each.chosen, f"{each.target.loss:.3f}", f"{each.control.loss:.3f}") for each in report.removal
    )
    return Table(f"Removing {target} from the base", ("model", "chosen", f"{target} (up)", f"{control} (stays)"), rows)


# Differences in loss below this are called none: other seeds move the losses by as much.
_NEAR = 0.01


def notes(rows: Sequence[Row], curves: Sequence[Curve], removal: Sequence[Removal]) -> tuple[str, ...]:
    """Return sentences about this run; comparisons come from its numbers alone."""
    return (
        *_comparisons(rows),
        *_flatness(curves),
        *_association(rows),
        *_removed(removal),
        "This is one run with one seed: it shows how the pieces fit together, not which method is better.",
    )


def _comparisons(rows: Sequence[Row]) -> list[str]:
    ours = next((row for row in rows if row.name == "merged/gradient_matching"), None)
    if ours is None:
        return []
    said = [_compare(ours, row) for row in rows if row.name in _OTHERS]
    if ours.extrapolation is not None:
        said.append(
            f"Gradient matching diagnoses an extrapolation of {ours.extrapolation:.1f} at weight 1 "
            "(up to 1.5 is fine, above it merges are usually worse than the base)."
        )
    return said


_OTHERS = {
    "merged/average": "the average",
    "merged/fisher": "Fisher averaging",
    "merged/task_arithmetic": "untuned task arithmetic",
    "merged/task_arithmetic_tuned": "tuned task arithmetic",
}


def _compare(ours: Row, other: Row) -> str:
    gap = ours.mean.loss - other.mean.loss
    relation = "about that" if abs(gap) < _NEAR else f"{'higher' if gap > 0 else 'lower'} than that"
    return (
        f"Here the mean loss of untuned gradient matching, {ours.mean.loss:.3f}, is {relation} of "
        f"{_OTHERS[other.name]}, {other.mean.loss:.3f}."
    )


def _flatness(curves: Sequence[Curve]) -> list[str]:
    spreads = ", ".join(f"{curve.title} {curve.spread:.3f}" for curve in curves)
    return [f"How much the choice of its number changes each method's validation loss: {spreads}."]


def _association(rows: Sequence[Row]) -> list[str]:
    merged = [row for row in rows if row.name.startswith("merged/") and row.mismatch is not None]
    if len(merged) < 3:
        return []
    rank = spearman([row.mismatch or 0.0 for row in merged], [row.mean.loss for row in merged])
    return [f"Over the {len(merged)} merged models, mismatch and mean loss have a rank correlation of {rank:.2f}."]


def _removed(removal: Sequence[Removal]) -> list[str]:
    tuned = [each for each in removal if each.chosen.startswith("tuned")]
    said = ", ".join(f"{each.title} raises it to {each.target.loss:.3f}" for each in tuned)
    if not said:
        return []
    base = removal[0].target.loss
    return [f"Removal, at a control loss within 5 % of the base's on validation text: from {base:.3f}, {said}."]


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the rank correlation of two lists; 0 where one of them is constant."""
    x, y = _ranks(left), _ranks(right)
    mean = (len(x) - 1) / 2
    product = sum((a - mean) * (b - mean) for a, b in zip(x, y, strict=True))
    norms = sum((a - mean) ** 2 for a in x) * sum((b - mean) ** 2 for b in y)
    return float(product / norms**0.5) if norms > 0 else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 0; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
