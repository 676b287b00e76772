"""Merging by each recipe, tuning on validation text, scoring on test text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from torch import Tensor

from merge_cli.demo import byte_lm
from merge_cli.demo.corpus import Domain
from merge_cli.demo.mismatch import Mismatch
from merge_cli.demo.recipes import ADDITION, EXPERTS, REMOVAL, Trial
from merge_cli.demo.report import Curve, Removal, Row
from merge_cli.plan import build_plan
from merge_cli.recipe import load_recipe
from merge_cli.report import MergeReport
from merge_cli.run import merge

# What removal may cost: the control's loss on validation text, relative to the base's.
_TOLERATED = 1.05


class Comparison:
    """Merges and scores in the demonstration's folder.

    Args:
        folder: Holds base, experts and Fishers.
        domains: The base's own first.
        examples: How many training examples of each expert the mismatch is measured on.
        pool: Where models are scored.
        say: Is told what is being done.

    Attributes:
        warnings: What the merges warned of.
    """

    def __init__(
        self, folder: Path, domains: tuple[Domain, ...], examples: int, pool: Executor, say: Callable[[str], None]
    ) -> None:
        self._folder, self._domains, self._pool, self._say = folder, domains, pool, say
        self._test = {domain.name: byte_lm.encode(domain.test) for domain in domains}
        self._validation = {domain.name: byte_lm.encode(domain.validation) for domain in domains}
        self._mismatch = Mismatch(folder, domains[1:], examples)
        self.warnings: list[str] = []

    def add(self) -> tuple[tuple[Row, ...], tuple[Curve, ...]]:
        """Merge the experts by every recipe, untuned and tuned."""
        reports = {trial.name: self._merge(trial) for trial in ADDITION}
        curves = {trial.name: self._curve(trial) for trial in ADDITION if trial.grid}
        wanted = [("base", "base", "trained")]
        wanted += [(name, f"{name}: {self._domains[i + 1].name}", "trained") for i, name in enumerate(EXPERTS)]
        for trial in ADDITION:
            what = f"untuned, {_usual(trial)}" if trial.grid else "nothing to tune"
            wanted.append((f"merged/{trial.name}", trial.title, what))
            if trial.grid:
                best, _ = min(curves[trial.name].points, key=lambda point: point[1])
                wanted.append(self._keep(trial, best))
        wanted.append(("joint", "trained on all three", "trained"))
        self._say("scoring every model, and measuring its gradient mismatch")
        rows = self._pool.map(lambda each: self._row(each, reports), wanted)
        return tuple(rows), tuple(curves.values())

    def remove(self) -> tuple[Removal, ...]:
        """Remove the first expert's domain from the base in every way."""
        control, target = self._domains[0].name, self._domains[1].name
        most = _TOLERATED * self._score(self._folder / "base", self._validation, [control])[control].loss
        wanted = [("base", "base", "")]
        for trial in REMOVAL:
            self._merge(trial)
            wanted.append((f"merged/{trial.name}", trial.title, f"untuned, {_usual(trial)}"))
            tried = self._try(trial, [target, control])
            allowed = [(value, scores) for value, scores in tried if scores[control].loss <= most]
            if allowed:
                value, _ = max(allowed, key=lambda each: each[1][target].loss)
                wanted.append(self._keep(trial, value))
        scores = self._pool.map(lambda each: self._score(self._folder / each[0], self._test, [target, control]), wanted)
        return tuple(
            Removal(name, title, chosen, score[target], score[control])
            for (name, title, chosen), score in zip(wanted, scores, strict=True)
        )

    def _merge(self, trial: Trial) -> MergeReport:
        path = self._folder / f"{trial.name}.yml"
        path.write_text(trial.text, encoding="utf-8")
        self._say(f"merge-cli merge {path.name} merged/{trial.name}")
        report = merge(build_plan(load_recipe(path)), self._folder / "merged" / trial.name, sync=False)
        self.warnings += [f"{trial.name}: {warning}" for warning in report.warnings]
        return report

    def _try(self, trial: Trial, domains: Sequence[str]) -> list[tuple[float, dict[str, byte_lm.Score]]]:
        """Merge with each value of the grid and score on validation text; the checkpoints are not kept."""
        scratch = self._folder / "merged" / f"{trial.name}.grid"
        for value in trial.grid:
            recipe = load_recipe(self._folder / f"{trial.name}.yml", overrides=[f"{trial.tuned}={value}"])
            merge(build_plan(recipe), scratch / str(value), sync=False)
        scores = self._pool.map(lambda value: self._score(scratch / str(value), self._validation, domains), trial.grid)
        found = list(zip(trial.grid, scores, strict=True))
        shutil.rmtree(scratch)
        return found

    def _curve(self, trial: Trial) -> Curve:
        self._say(f"choosing {trial.tuned} of {trial.name} on validation text, from {len(trial.grid)} values")
        experts = [domain.name for domain in self._domains[1:]]
        tried = self._try(trial, experts)
        return Curve(trial.title, trial.tuned, tuple((value, _mean(scores.values()).loss) for value, scores in tried))

    def _keep(self, trial: Trial, value: float) -> tuple[str, str, str]:
        """Write the tuned recipe and merge by it; return its folder, its title and what was chosen."""
        key = trial.tuned.rpartition(".")[2]
        text = f"# {key} chosen on validation text.\n" + trial.text.replace(_usual(trial), f"{key}: {value:g}")
        tuned = Trial(f"{trial.name}_tuned", trial.title, text)
        self._merge(tuned)
        return f"merged/{tuned.name}", tuned.title, f"tuned, {key} {value:g}"

    def _row(self, which: tuple[str, str, str], reports: Mapping[str, MergeReport]) -> Row:
        name, title, chosen = which
        scores = self._score(self._folder / name, self._test, list(self._test))
        mean = _mean([scores[domain.name] for domain in self._domains[1:]])
        report = reports.get(name.removeprefix("merged/"))
        extrapolation = report.diagnostics.get("extrapolation") if report is not None else None
        return Row(name, title, chosen, scores, mean, self._mismatch.of(self._folder / name), extrapolation)

    def _score(self, folder: Path, texts: Mapping[str, Tensor], domains: Sequence[str]) -> dict[str, byte_lm.Score]:
        model = byte_lm.load(folder)
        return {domain: byte_lm.evaluate(model, texts[domain]) for domain in domains}


def _usual(trial: Trial) -> str:
    """Return the number to choose as it stands in the recipe: ``weight: 0.4``."""
    found = re.search(rf"{trial.tuned.rpartition('.')[2]}: -?[\d.]+", trial.text)
    assert found is not None
    return found.group()


def _mean(scores: Collection[byte_lm.Score]) -> byte_lm.Score:
    return byte_lm.Score(
        sum(score.loss for score in scores) / len(scores), sum(score.accuracy for score in scores) / len(scores)
    )
