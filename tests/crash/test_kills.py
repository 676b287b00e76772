"""A few of the kills, and a few merges of the soak, that run by name in hundreds."""

import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def printed(module: str, *arguments: str) -> str:
    """Run a script in a process that has no threads yet, because it forks."""
    command = [sys.executable, "-m", f"tests.crash.{module}", *arguments]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


def test_merges_that_are_killed_go_on_to_the_same_bytes() -> None:
    assert number(r"(\d+) kills, ", printed("kills", "--kills", "6", "--seed", "1")) >= 6


def test_a_merge_may_be_killed_at_each_of_its_last_calls() -> None:
    said = printed("kills", "--sweep", "copies", "--last", "6")
    assert number(r"(\d+) about to commit", said) > 0
    assert number(r"(\d+) after the commit", said) > 3


def test_merges_of_random_recipes_agree_with_the_oracle_though_they_are_killed() -> None:
    said = printed("soak", "--merges", "8", "--seed", "0")
    assert number(r"(\d+) merges survived", said) == 8
    assert number(r"survived (\d+) kills", said) > 0
