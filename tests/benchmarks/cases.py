"""What is merged: families of checkpoints, and one recipe per method that merge-cli and mergekit read alike."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.measuring import run, say


@dataclass(frozen=True)
class Family:
    """Checkpoints of one shape: ``base``, ``ft1`` to ``ft<fine_tunes>``, and their Fishers where ``fishers``."""

    folder: Path
    fine_tunes: int
    fishers: bool = False

    @property
    def models(self) -> list[Path]:
        """The fine-tunes."""
        return [self.folder / f"ft{model}" for model in range(1, self.fine_tunes + 1)]

    @property
    def base(self) -> Path:
        """The base."""
        return self.folder / "base"

    def fisher(self, model: Path) -> Path:
        """Return the Fisher of a fine-tune or of the base."""
        return self.folder / f"{model.name}-fisher"

    def make(self, *shape: str) -> Family:
        """Make what is missing of it; ``shape`` are the arguments of ``checkpoints`` that say of which shape.

        In a process of its own, for the reason that ``measuring`` gives.
        """
        models = [self.base, *self.models]
        wanted = [*models, *(self.fisher(model) for model in models if self.fishers)]
        if not all(checkpoint.exists() for checkpoint in wanted):
            say(f"making checkpoints in {self.folder}")
            fishers = ["--fishers"] if self.fishers else []
            counts = ["--fine-tunes", str(self.fine_tunes)]
            run([sys.executable, "-m", "tests.benchmarks.checkpoints", self.folder, *shape, *counts, *fishers])
        return self


@dataclass(frozen=True)
class Case:
    """A merge to measure.

    Attributes:
        method: Its ``merge_method``.
        base: Whether the base's weights are read.
        most: How many of the fine-tunes are merged; None: all.
        weighted: Whether the models have weights.
        each: Parameters of every model.
        parameters: Parameters of the method.
        ours: Parameters that only merge-cli is given.
        fishers: Whether the models' Fishers are read.
        base_fisher: Whether the base's is.
        peer: Whether mergekit has the method.
    """

    method: str
    base: bool = True
    most: int | None = None
    weighted: bool = True
    each: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)
    ours: Mapping[str, str] = field(default_factory=dict)
    fishers: bool = False
    base_fisher: bool = False
    peer: bool = True

    def inputs(self, family: Family) -> list[Path]:
        """Return the checkpoints that are read."""
        models = family.models[: self.most]
        bases = [family.base] * self.base + [family.fisher(family.base)] * self.base_fisher
        return [*bases, *models, *(family.fisher(model) for model in models if self.fishers)]

    def recipe(self, family: Family, *, for_peer: bool = False) -> dict[str, Any]:
        """Return the recipe; weights fall from model to model and sum to 1."""
        models = family.models[: self.most]
        n = len(models)
        entries: list[dict[str, Any]] = []
        for i, model in enumerate(models):
            weight = {"weight": round((n - i) * 2 / (n * (n + 1)), 4)} if self.weighted else {}
            fisher = {"fisher": str(family.fisher(model))} if self.fishers else {}
            entries.append({"model": str(model), **fisher, "parameters": {**weight, **self.each}})
        if self.method == "slerp":
            # mergekit wants both ends among the models.
            entries.insert(0, {"model": str(family.base)})
        return {
            "merge_method": self.method,
            **({"base_model": str(family.base)} if self.base else {}),
            **({"base_fisher": str(family.fisher(family.base))} if self.base_fisher else {}),
            "models": entries,
            "parameters": {**self.parameters, **({} if for_peer else self.ours)},
            "dtype": "bfloat16",
        }

    def write(self, path: Path, family: Family, *, for_peer: bool = False) -> Path:
        """Write the recipe to a file."""
        path.write_text(yaml.safe_dump(self.recipe(family, for_peer=for_peer), sort_keys=False))
        return path


CASES = {
    "linear": Case("linear", base=False),
    "slerp": Case("slerp", most=1, weighted=False, parameters={"t": 0.4}),
    "task_arithmetic": Case("task_arithmetic"),
    "dare_linear": Case("dare_linear", each={"density": 0.5}),
    "dare_ties": Case("dare_ties", each={"density": 0.5}),
    "ties": Case("ties", each={"density": 0.2}),
    "ties_model": Case("ties", each={"density": 0.2}, ours={"trim": "model"}, peer=False),
    "fisher": Case("fisher", base=False, fishers=True, peer=False),
    "gradient_matching": Case("gradient_matching", fishers=True, base_fisher=True, peer=False),
    # DARE as mergekit rescales it, for whoever wants the same arithmetic on both sides.
    "dare_linear_l1": Case("dare_linear", each={"density": 0.5}, ours={"rescale": "l1"}),
    "dare_ties_l1": Case("dare_ties", each={"density": 0.5}, ours={"rescale": "l1"}),
}
DEFAULT_CASES = [name for name in CASES if not name.endswith("_l1")]


def needs_fishers(names: list[str]) -> bool:
    """Whether any of these cases reads a Fisher."""
    return any(CASES[name].fishers for name in names)
