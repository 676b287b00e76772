"""The demonstration from its texts to its report."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from merge_cli.demo import byte_lm
from merge_cli.demo.corpus import Domain, Sizes, load_domains, write_jsonl
from merge_cli.demo.evaluate import Comparison
from merge_cli.demo.recipes import EXPERTS
from merge_cli.demo.report import DemoReport, notes
from merge_cli.errors import RecipeError
from merge_cli.fisher import FisherSettings, Source, estimate_fisher

Say = Callable[[str], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Scale:
    """Sizes of the demonstration.

    Attributes:
        sizes: Examples per domain.
        shared: Examples of each expert's training set that the base was trained on too.
        hidden: Width of the model.
        base: Training of the base.
        expert: Training of each expert.
        fisher_examples: Examples that Fishers and gradients are measured on.
    """

    sizes: Sizes
    shared: int
    hidden: int
    base: byte_lm.Training
    expert: byte_lm.Training
    fisher_examples: int


_FULL = Scale(Sizes(12_000, 2000, 256, 512), 500, 96, byte_lm.Training(400, 6e-3), byte_lm.Training(80, 1e-3), 256)
_QUICK = Scale(Sizes(240, 120, 24, 24), 60, 32, byte_lm.Training(30, 6e-3), byte_lm.Training(10, 2e-3), 32)


def run_demo(folder: Path, *, say: Say, seed: int = 0, quick: bool = False) -> DemoReport:
    """Train, fine-tune, measure, merge and compare in a folder, and leave everything there.

    Args:
        folder: To be made; it may exist if it is empty.
        say: Is told what is being done, one line at a time.
        seed: Of everything random.
        quick: Whether to be so small that the numbers mean nothing, to see that all of it works.

    Raises:
        RecipeError: If the folder holds something, or transformers is missing.
        CheckpointError: If this Python lacks the texts.
    """
    began = time.perf_counter()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} exists and is not an empty folder", hint="give another folder")
    scale = _QUICK if quick else _FULL
    with _quietly(), ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        domains = load_domains(scale.sizes, seed=seed)
        for domain in domains:
            say(f"text: {domain.name}, {domain.what}")
        data = _write_data(folder, domains, scale)
        _train(folder, domains, scale, seed, pool, say)
        _measure(folder, data, scale, pool, say)
        comparison = Comparison(folder, domains, scale.fisher_examples, pool, say)
        rows, curves = comparison.add()
        removal = comparison.remove()
    report = DemoReport(
        folder=str(folder),
        domains={domain.name: domain.what for domain in domains},
        rows=rows,
        curves=curves,
        removal=removal,
        notes=notes(rows, curves, removal),
        warnings=tuple(comparison.warnings),
        seconds=round(time.perf_counter() - began, 1),
    )
    (folder / "report.json").write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    return report


def _write_data(folder: Path, domains: tuple[Domain, ...], scale: Scale) -> dict[str, Path]:
    """Write the texts; return the training sets, by the checkpoint that was trained on them."""
    own, *others = domains
    # In turns, so that the first rows are a sample of all.
    shared = [domain.train[: scale.shared] for domain in others]
    rest = len(own.train) / scale.shared
    turns = (
        [*own.train[int(i * rest) : int((i + 1) * rest)], *(part[i] for part in shared)] for i in range(scale.shared)
    )
    texts = {"base": [text for turn in turns for text in turn]}
    texts |= {expert: list(domain.train) for expert, domain in zip(EXPERTS, others, strict=True)}
    texts["expert-1-at-base"] = list(others[0].train[: scale.shared])
    for domain in domains:
        write_jsonl(folder / "data" / f"{domain.name}-validation.jsonl", domain.validation)
        write_jsonl(folder / "data" / f"{domain.name}-test.jsonl", domain.test)
    return {name: write_jsonl(folder / "data" / f"{name}-train.jsonl", rows) for name, rows in texts.items()}


def _train(
    folder: Path, domains: tuple[Domain, ...], scale: Scale, seed: int, pool: ThreadPoolExecutor, say: Say
) -> None:
    """Train base, experts and joint model, each saved."""
    own, *others = domains
    everything = [*own.train, *(text for domain in others for text in domain.train[: scale.shared])]
    model = byte_lm.new_model(seed, hidden=scale.hidden)
    size = sum(parameter.numel() for parameter in model.parameters())
    say(f"training base: {size:,} parameters, {len(everything)} pieces of {own.name} and some of the others")
    base = byte_lm.train(model, byte_lm.encode(everything), scale.base, seed=seed)
    byte_lm.save(base, folder / "base")
    texts = {expert: list(domain.train) for expert, domain in zip(EXPERTS, others, strict=True)}
    texts["joint"] = [text for some in texts.values() for text in some]
    steps = {name: len(some) // len(others[0].train) * scale.expert.steps for name, some in texts.items()}

    def tune(name: str) -> None:
        how = byte_lm.Training(steps[name], scale.expert.rate)
        tuned = byte_lm.train(copy.deepcopy(base), byte_lm.encode(texts[name]), how, seed=seed)
        byte_lm.save(tuned, folder / name)

    for expert, domain in zip(EXPERTS, others, strict=True):
        say(f"fine-tuning {expert}: {len(domain.train)} pieces of {domain.name}, {steps[expert]} steps")
    say(f"fine-tuning joint: all three, {steps['joint']} steps")
    # The longest first.
    _everywhere(pool, tune, ["joint", *EXPERTS])


def _measure(folder: Path, data: dict[str, Path], scale: Scale, pool: ThreadPoolExecutor, say: Say) -> None:
    """Measure the Fisher of each expert and of the base on their training sets, and what removal needs."""
    models = {"base": "base", **{expert: expert for expert in EXPERTS}, "expert-1-at-base": "base"}

    def measure(name: str) -> None:
        settings = FisherSettings(
            model=str(folder / models[name]),
            # The rows are in random order already; unshuffled, the mismatch is measured on the same ones.
            source=Source(str(data[name]), shuffle=False),
            examples=scale.fisher_examples,
            batch_size=32,
            gradient=name in EXPERTS,
        )
        estimate_fisher(settings, folder / _fisher(name), sync=False)

    for name, model in models.items():
        say(f"merge-cli fisher {model} --data {data[name].relative_to(folder)} --out {_fisher(name)} ...")
    _everywhere(pool, measure, models)


def _fisher(name: str) -> str:
    return "fisher-" + name.removeprefix("expert-")


def _everywhere(pool: ThreadPoolExecutor, work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Work on all items at once, and return the results in order."""
    return list(pool.map(work, items))


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the libraries' progress bars away, and give each worker one thread, which is fastest for small models."""
    transformers, datasets = byte_lm.libraries()
    logging = transformers.utils.logging
    threads, verbosity, bars = torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        datasets.enable_progress_bars()
        if bars:
            logging.enable_progress_bar()
