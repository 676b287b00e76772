"""Metadata of a measurement, as its files hold it."""

from __future__ import annotations

import json

from merge_cli.fisher.batching import Tally
from merge_cli.fisher.data import Rows
from merge_cli.fisher.encode import Encoder
from merge_cli.fisher.hf_model import Loaded
from merge_cli.fisher.likelihood import Estimator, Likelihood
from merge_cli.fisher.settings import FisherSettings
from merge_cli.version import __version__


def describe(
    settings: FisherSettings, loaded: Loaded, objective: Likelihood, encoder: Encoder, rows: Rows, tally: Tally
) -> dict[str, str]:
    """Return the metadata of a Fisher.

    ``reduction`` is ``mean``: the files hold the mean over ``examples`` of squared gradients, which stands for
    ``train_examples``. Where that number is from is in ``train_examples_from``: ``given``, ``rows`` (counted),
    ``estimate`` (the rows of the data, times the usable share of those that were looked at) or ``examples`` (the data
    does not say how large it is). What the examples were made of is in ``layout``, ``text_columns`` (a JSON list),
    ``label_column``, ``classes``, ``max_length``, ``rows``, ``rows_seen``, ``rows_unusable`` (a JSON object: why ->
    how many) and ``rows_cut``; what has no meaning for the data is an empty text.
    """
    estimator, layout = objective.estimator, encoder.layout
    train, origin = train_examples(settings, rows, tally)
    return {
        "format": "pt",
        "kind": "fisher",
        "estimator": str(estimator),
        "reduction": "mean",
        "examples": str(tally.used),
        "draws": str(settings.draws if estimator is Estimator.SAMPLED else 0),
        "train_examples": str(train),
        "train_examples_from": origin,
        "labels": {"sampled": "model", "exact": "model", "empirical": "true"}[estimator],
        "seed": str(settings.seed),
        "task": str(loaded.task),
        "dataset": settings.source.name,
        "dataset_fingerprint": tally.digest.hexdigest(),
        "layout": str(layout.form),
        "text_columns": json.dumps(layout.inputs),
        "label_column": layout.label or "",
        "classes": "" if encoder.classes is None else str(encoder.classes),
        "max_length": str(encoder.max_length),
        "rows": "" if rows.count is None else str(rows.count),
        "rows_seen": str(tally.seen),
        "rows_unusable": json.dumps(tally.unusable),
        "rows_cut": str(tally.cut),
        "model": settings.model,
        "dtype": settings.dtype,
        "merge_cli": __version__,
    }


def train_examples(settings: FisherSettings, rows: Rows, tally: Tally) -> tuple[int, str]:
    """Return the size of the training set that a Fisher stands for, and where that number is from."""
    if settings.train_examples is not None:
        return settings.train_examples, "given"
    if tally.whole or tally.seen == rows.count:
        return tally.used, "rows"
    if rows.count is None:
        return tally.used, "examples"
    # Rows that could not be used were no examples of the training either.
    return round(rows.count * tally.used / tally.seen), "estimate" if tally.unusable else "rows"
