"""What the demonstration found, as data and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from merge_cli.demo.tiny import Score


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
    """How a method's loss on validation data depends on the number that was chosen.

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
    """What became of the domain that was to be removed, and of the one that was to stay; losses on test data."""

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
    """What the demonstration found.

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
