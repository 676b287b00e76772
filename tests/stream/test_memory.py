"""Peak memory does not depend on the size of a tensor."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_header, write_recipe

# In float32 a little more than 2 GiB; the one element that is not zero lies beyond them.
_NUMEL = 2**29 + 1_000_003
_FAR = 2**29 + 5

_PROGRAM = r"""
import json, re, sys
from pathlib import Path
import torch

def peak():
    # Not getrusage: what it gives begins with the memory of the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
from merge_cli import build_plan, load_recipe, merge

plan = build_plan(load_recipe(sys.argv[1]))
report = merge(plan, sys.argv[2], sync=False)
print(json.dumps({"before": before, "after": peak(), "read": report.read_bytes}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's own account of it")
def test_a_tensor_of_more_than_two_gibibytes_is_merged_within_the_budget(tmp_path: Path) -> None:
    # The output is narrow, because unlike the input it takes room on the disk.
    if shutil.disk_usage(tmp_path).free < 2 * _NUMEL:
        pytest.skip("the output takes 0.5 GB")
    path = write_header(tmp_path / "one" / "model.safetensors", {"w": ("F32", [_NUMEL], 4 * _NUMEL)})
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4 * (_NUMEL - _FAR))
        file.write(struct.pack("<f", 4.0))
    models = [{"model": "one", "parameters": {"weight": 0.5}}]
    recipe = {
        "merge_method": "linear",
        "models": models,
        "out_dtype": "float8_e5m2",
        "parameters": {"normalize": False},
    }
    out = tmp_path / "out"
    command = [sys.executable, "-c", _PROGRAM, str(write_recipe(tmp_path / "r.yml", recipe)), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = json.loads(done.stdout)
    weights = out / "model.safetensors"
    with weights.open("rb") as file:
        file.seek(weights.stat().st_size - (_NUMEL - _FAR) - 1)
        around = file.read(3)
    shutil.rmtree(out)
    assert said["read"] > 2**31
    # 2.0 is 0x40 in float8_e5m2; its neighbours stay zero.
    assert around == b"\x00\x40\x00"
    assert said["after"] - said["before"] < 300_000_000
    assert said["after"] < said["read"] / 3
