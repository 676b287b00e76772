"""What the numbers of one run say, in sentences that cannot say more than the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from merge_cli.demo.report import Curve, Removal, Row

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
            "(up to 1.5 is fine, above it merges are as a rule worse than the base)."
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
