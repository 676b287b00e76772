"""What a listener is told adds up."""

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merge_cli.kernels import GRAIN
from merge_cli.run import merge
from tests.checkpoints import read_checkpoint
from tests.stream.families import planned


class Recorder:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.done: list[Counter[str]] = []
        self._lock = threading.Lock()

    def phase(self, name: str, nbytes: int) -> None:
        self.phases.append((name, nbytes))
        self.done.append(Counter())

    def advance(self, tensor: str, nbytes: int) -> None:
        with self._lock:
            self.done[-1][tensor] += nbytes


RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.5}},
    "ties over the model": {"merge_method": "ties", "parameters": {"density": 0.5, "trim": "model"}},
    "steps": {
        "merge_method": "dare_linear",
        "parameters": {"rescale": "l1", "density": 0.5},
        "prepare": {"dare": {"drop_rate": 0.5, "rescale": "l1"}, "keep_largest": {"density": 0.5, "scope": "model"}},
    },
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_byte_of_the_output_is_told_of_once(family: Path, tmp_path: Path, name: str, threads: int) -> None:
    models = [{"model": model, "parameters": {"weight": 1}} for model in ("one", "two")]
    plan = planned(family, {"base_model": "base", "models": models, **RECIPES[name]})
    recorder = Recorder()
    merge(
        replace(plan, block_numel=GRAIN, threads=threads),
        tmp_path / "out",
        sync=False,
        input_digests=False,
        listener=recorder,
    )
    assert recorder.phases[-1][0] == "merging"
    sizes = {name: tensor.nbytes for name, tensor in read_checkpoint(tmp_path / "out").items() if tensor.nbytes}
    assert recorder.done[-1] == sizes
    assert recorder.phases[-1][1] == sum(sizes.values())


@pytest.mark.parametrize("name", ["ties over the model", "steps"])
def test_measuring_all_tensors_is_a_phase_of_its_own(family: Path, tmp_path: Path, name: str) -> None:
    models = [{"model": model, "parameters": {"weight": 1}} for model in ("one", "two")]
    recorder = Recorder()
    merge(
        planned(family, {"base_model": "base", "models": models, **RECIPES[name]}),
        tmp_path / "out",
        sync=False,
        listener=recorder,
    )
    names = [phase for phase, _ in recorder.phases]
    assert names[0] == "measuring"
    assert all(total > 0 for _, total in recorder.phases)
