"""A disk that is really full: a small file system in memory where one may be mounted, else a limit on files' sizes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoints import write_checkpoint, write_recipe
from tests.crash.cases import contents

_SIZE = 8 * 2**20


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Return a folder with two models of 4 MB and a recipe."""
    for i, name in enumerate(("one", "two")):
        tensors = {f"layers.{k}.w": torch.full((500, 500), float(i + k)) for k in range(4)}
        write_checkpoint(tmp_path / name, tensors)
    models = [{"model": name, "parameters": {"weight": 1}} for name in ("one", "two")]
    write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models})
    return tmp_path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Return an empty file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def merged(inputs: Path, out: Path, *, before: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys\n{before}\nsys.argv = ['merge-cli', *sys.argv[1:]]\nfrom merge_cli.cli import main\nmain()"
    command = [sys.executable, "-c", program, "merge", "r.yml", str(out), "--quiet"]
    return subprocess.run(command, cwd=inputs, capture_output=True, text=True, timeout=120)


def fill(place: Path, left: int) -> Path:
    """Leave so many bytes free."""
    free = shutil.disk_usage(place).free
    with (place / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - left)
    return place / "ballast"


def test_a_disk_that_cannot_hold_the_output_is_known_before_the_work(inputs: Path, small: Path) -> None:
    fill(small, 2**20)
    done = merged(inputs, small / "out")
    assert done.returncode == 4
    assert "out.partial has 1.0 MB free, the output takes 4.0 MB\n  hint: free some disk space" in done.stderr
    assert sorted(path.name for path in small.iterdir()) == ["ballast"]


def test_a_disk_that_fills_up_at_the_end_costs_no_work(inputs: Path, small: Path) -> None:
    # The weights, the lock and the journal just fit; what stands beside the weights does not.
    ballast = fill(small, 4_000_000 + 4 * 4096)
    done = merged(inputs, small / "out")
    assert done.returncode == 4
    assert "No space left on device" in done.stderr
    assert "run the same command again to resume" in done.stderr
    assert sorted(path.name for path in small.iterdir()) == ["ballast", "out.partial"]
    ballast.unlink()
    assert merged(inputs, small / "out").returncode == 0
    assert merged(inputs, inputs / "whole" / "out").returncode == 0
    assert contents(small / "out") == contents(inputs / "whole" / "out")


def test_a_limit_on_the_size_of_files_is_a_full_disk(inputs: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    done = merged(inputs, inputs / "out", before=limit)
    assert done.returncode == 4
    assert "model.safetensors: File too large\n  hint: free some disk space or write elsewhere" in done.stderr
    assert not (inputs / "out").exists()
    assert not (inputs / "out.partial").exists()
