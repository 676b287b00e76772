"""Nothing in the output depends on the order in which Python happens to keep sets."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.checkpoints import write_checkpoint, write_recipe


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
