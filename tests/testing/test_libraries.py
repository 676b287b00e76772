"""The battery asks for little: hypothesis, and torch only for methods that take nothing else."""

from __future__ import annotations

import subprocess
import sys


def run_without(library: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which a library cannot be imported."""
    text = f"import sys\nsys.modules[{library!r}] = None\n{program}"
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)


def test_without_hypothesis_it_says_what_to_install() -> None:
    done = run_without("hypothesis", "import merge_cli.testing")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("merge_cli.testing needs hypothesis: pip install 'merge-cli-nn[test]'")


def test_a_method_of_numpy_is_checked_without_torch() -> None:
    program = """
from merge_cli.methods import find_method
from merge_cli.testing import check_method, per_tensor

@per_tensor
def oracle(tensor, params):
    shares = [weight / (sum(params.weight) if params.normalize else 1) for weight in params.weight]
    return [sum(w * x for w, x in zip(shares, column)) for column in zip(*tensor.models)]

check_method(find_method("linear"), oracle=oracle)
"""
    done = run_without("torch", program)
    assert done.returncode == 0, done.stderr


def test_a_method_of_torch_says_without_torch_what_it_needs() -> None:
    program = """
from dataclasses import replace
from merge_cli.methods import find_method
from merge_cli.testing import check_any_block_size

check_any_block_size(replace(find_method("linear"), numpy=False))
"""
    done = run_without("torch", program)
    assert "RuleBroken: this one takes torch tensors only, and torch is not installed" in done.stderr
