"""Runs the program within the process of the tests, and gives it something to merge."""

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from merge_cli.cli import main
from tests.checkpoints import write_checkpoint


@dataclass(frozen=True)
class Done:
    """How a run of the program ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return a function that runs ``merge-cli`` with some arguments."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run_with(*arguments: object) -> Done:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["merge-cli", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capfd.readouterr()
        code = caught.value.code
        return Done(code if isinstance(code, int) else int(code is not None), said.out, said.err)

    yield run_with
    for number, handler in handlers.items():
        signal.signal(number, handler)
    gc.unfreeze()
    gc.enable()


RECIPE = """merge_method: ties
base_model: base
models:
  - model: one
    parameters: {weight: 1, density: 0.5}
  - model: two
    parameters: {weight: 0.5}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory: three checkpoints and the recipe ``r.yml``, which has nothing to warn of."""
    for i, name in enumerate(["base", "one", "two"]):
        write_checkpoint(tmp_path / name, {"layers.0.w": torch.full((4, 3), 1.0 + i), "ids": torch.arange(3)})
    (tmp_path / "r.yml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> list[str]:
    """Return every path below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
