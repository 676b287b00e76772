"""Nothing in the output depends on the order in which Python happens to keep sets."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.checkpoints import write_checkpoint, write_recipe
from tests.crash.cases import RECIPES, TINY, write_models

_EVERY_MERGE = """
import sys
from pathlib import Path
from merge_cli.run import merge
from tests.crash.cases import RECIPES, digest, planned
inputs, out = map(Path, sys.argv[1:])
for number, (name, recipe) in enumerate(RECIPES.items()):
    merge(planned(inputs, recipe, threads=1 + number % 3), out / name / "out", sync=False)
    print(digest(out / name / "out"), name)
"""


def test_the_order_of_sets_changes_no_byte_of_any_file(tmp_path: Path) -> None:
    names = [f"layers.{i}.{part}" for i in range(3) for part in ("attn.weight", "mlp.weight", "norm")]
    for i, name in enumerate(["one", "two", "three"]):
        write_checkpoint(tmp_path / name, {tensor: torch.arange(20.0) * (i + 1) for tensor in names})
        (tmp_path / name / "tokenizer.json").write_text(name)
        (tmp_path / name / "vocab.txt").write_text(name)
    models = [
        {"model": name, "parameters": {"weight": [{"filter": "attn", "value": [1, 2]}, {"value": 1}], "scale": 1}}
        for name in ("two", "one", "three")
    ]
    write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models, "exclude": ["*.norm"]})
    outputs = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "merge_cli", "merge", "r.yml", "out", "--no-fsync", "--force"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120)
        outputs.append({path.name: path.read_bytes() for path in sorted((tmp_path / "out").iterdir())})
    assert outputs[0].keys() >= {"model.safetensors", "merge_manifest.json", "README.md", "SHA256SUMS"}
    assert outputs[0] == outputs[1]
    assert outputs[0]["tokenizer.json"] == b"two"


def test_neither_a_hash_seed_nor_another_run_changes_a_byte_of_any_method(tmp_path: Path) -> None:
    write_models(tmp_path, TINY)
    printed = []
    for number, seed in enumerate(("0", "1", "random")):
        command = [sys.executable, "-c", _EVERY_MERGE, str(tmp_path), str(tmp_path / f"run {number}")]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
        printed.append(done.stdout.splitlines())
    assert len(set(printed[0])) == len(RECIPES)
    assert printed == [printed[0]] * 3
