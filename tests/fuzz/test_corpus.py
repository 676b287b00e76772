"""Every file of the corpus is refused with an error of ours, whoever reads it, and so is what is made of it."""

import resource
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from merge_cli.checkpoint import open_checkpoint
from merge_cli.errors import MergeError
from merge_cli.fisher.from_optimizer import ImportSettings, import_fisher
from merge_cli.plan import build_plan
from merge_cli.recipe import load_recipe
from tests.fuzz.breaking import break_bytes
from tests.fuzz.seeds import FOLDER
from tests.fuzz.states import model

FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())


def read(path: Path, out: Path) -> None:
    """Let the part of the program read a file that users give such files to."""
    if path.suffix == ".yml":
        build_plan(load_recipe(path))
    elif path.suffix == ".pt":
        import_fisher(ImportSettings(str(model()), path, train_examples=4, batch_size=2), out, sync=False)
    else:
        open_checkpoint(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def test_the_corpus_is_there() -> None:
    assert {path.parent.name for path in FILES} == {"pickles", "states", "headers", "recipes"}
    assert sum(path.stat().st_size for path in FILES) < 200_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_of_the_corpus_is_refused_and_makes_nothing(path: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError) as caught:
        read(path, tmp_path / "out")
    assert caught.value.exit_code in (2, 3)
    assert len(str(caught.value)) < 20_000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_made_of_a_file_of_the_corpus_is_refused_or_sound(path: Path, tmp_path: Path) -> None:
    chance = Random(path.name)
    for number in range(10):
        other = tmp_path / f"{number}{path.suffix}"
        other.write_bytes(break_bytes(path.read_bytes(), chance, times=chance.randrange(1, 4)))
        try:
            read(other, tmp_path / f"out-{number}")
        except MergeError as error:
            assert error.exit_code in (2, 3), error  # noqa: PT017


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="the system limits no memory")
def test_no_pickle_of_the_corpus_takes_memory_that_the_system_does_not_give() -> None:
    program = f"""
import resource
from pathlib import Path
from merge_cli.checkpoint import open_checkpoint
from merge_cli.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
for path in sorted(Path({str(FOLDER)!r}).glob("pickles/*")):
    try:
        open_checkpoint(path)
    except CheckpointError:
        continue
    raise SystemExit(f"{{path}} was accepted")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
