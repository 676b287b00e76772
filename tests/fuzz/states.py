"""Fuzzes the states of optimizers: ``python -m tests.fuzz.states --inputs 2000``."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from merge_cli.fisher.from_optimizer import ImportSettings, Kind, import_fisher
from tests.fisher.folders import save_bert
from tests.fuzz.breaking import EXTREMES, break_bytes, break_tree, dumped
from tests.fuzz.trying import listing, main

_TRAINER = {"train_batch_size": 2, "global_step": 1, "epoch": 0.5, "max_steps": 1, "num_train_epochs": 3}
_ODD: tuple[Tensor, ...] = (
    torch.ones(2, dtype=torch.complex64), torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.ones(()),
    torch.full((3, 16), float("nan")), torch.full((3, 16), float("inf")), torch.full((3, 16), -1.0),
    torch.ones(3, 16, dtype=torch.int64), torch.ones(3, 16, dtype=torch.bfloat16), torch.ones(0), torch.ones(16, 3).t(),
    torch.ones(3, 16, dtype=torch.bool), torch.ones(1).expand(3, 16), torch.full((3, 16), 3e38), torch.tensor(1e30),
    torch.zeros(3, 16, dtype=torch.float64), torch.tensor(float("nan")), torch.tensor(0.5), torch.arange(3),
)  # fmt: skip


@functools.cache
def model() -> Path:
    """Make the model that the optimizer has trained, once in a process."""
    return save_bert(Path(tempfile.mkdtemp()) / "bert", num_hidden_layers=1)


@functools.cache
def states() -> tuple[dict[str, Any], ...]:
    """Return sound states: of one group and of two, of IVON."""
    found: list[dict[str, Any]] = []
    for groups in (1, 2):
        trained = AutoModelForSequenceClassification.from_pretrained(model())
        named = dict(trained.named_parameters())
        bare = [name for name in named if "bias" in name or "LayerNorm" in name]
        split: list[dict[str, Any]] = [{"params": [value for name, value in named.items() if name not in bare]},
                                       {"params": [named[name] for name in bare], "weight_decay": 0.1}]  # fmt: skip
        optimizer = torch.optim.AdamW(split if groups == 2 else list(named.values()))
        for value in named.values():
            value.grad = torch.ones_like(value)
        optimizer.step()
        found.append(optimizer.state_dict())
    numel = sum(value.numel() for value in named.values())
    hessian = {"params": list(range(len(named))), "hess": torch.ones(numel), "ess": 500.0, "weight_decay": 0.1}
    return (*found, {"state": {}, "param_groups": [hessian]})


def broken(chance: Random) -> tuple[Any, Kind]:
    """Return a state with some places changed; every third one has a tensor replaced by an odd one."""
    number = chance.randrange(3)
    # A state that is broken anywhere is as a rule refused at its first entry: few entries get further.
    state = break_tree(states()[number], chance, times=chance.randrange(3))
    entries = state.get("state") if isinstance(state, dict) else None
    if chance.random() < 0.3 and isinstance(entries, dict) and entries:
        entry = entries[chance.choice(list(entries))]
        if isinstance(entry, dict):
            entry[chance.choice(("step", "exp_avg_sq"))] = chance.choice((*_ODD, *EXTREMES))
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if chance.random() < 0.2 and isinstance(groups, list) and groups and isinstance(groups[0], dict):
        groups[0][chance.choice(("params", "betas", "hess", "ess", "param_names"))] = chance.choice((*_ODD, *EXTREMES))
    return state, Kind.IVON if number == 2 else Kind.ADAM


def attempt(chance: Random, folder: Path) -> bool:
    """Break an optimizer's state, or what the Trainer wrote beside it, and import it."""
    place, out = folder / "checkpoint-1", folder / "out"
    place.mkdir()
    state, kind = broken(chance)
    torch.save(state, place / "optimizer.pt")
    if chance.random() < 0.2:
        raw = (place / "optimizer.pt").read_bytes()
        (place / "optimizer.pt").write_bytes(break_bytes(raw, chance, times=chance.randrange(1, 3)))
    beside = dumped(break_tree(_TRAINER, chance, times=chance.randrange(3)))
    (place / "trainer_state.json").write_bytes(break_bytes(beside, chance, times=chance.randrange(2)))
    before = listing(folder)
    settings = ImportSettings(str(model()), place, kind, train_examples=chance.choice((4, 4, None)))
    try:
        metadata = import_fisher(settings, out, sync=False)
    except BaseException:
        assert listing(folder) == before
        raise
    found, weights = load_file(out / "model.safetensors"), load_file(model() / "model.safetensors")
    assert found.keys() <= weights.keys()
    for name, values in found.items():
        assert values.shape == weights[name].shape
        assert bool(torch.isfinite(values).all() and (values >= 0).all())
    json.dumps(metadata, allow_nan=False)
    return True


if __name__ == "__main__":
    main(attempt, "states of optimizers")
