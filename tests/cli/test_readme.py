"""The commands of the README, in its order, on what its demo leaves: they end well."""

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Run

_README = Path(__file__).parents[2] / "README.md"
_FENCE = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^    merge-cli (.*)$", re.MULTILINE)
# What the README calls a user's own models and data, and what of the demo stands for it.
_OWN = {
    "base": "base",
    "math": "expert-1",
    "code": "expert-2",
    "base-data.jsonl": "data/base-train.jsonl",
    "math.jsonl": "data/expert-1-train.jsonl",
    "code.jsonl": "data/expert-2-train.jsonl",
}


def steps() -> list[tuple[str, str]]:
    """Return recipes and commands in the order in which they stand."""
    text = _README.read_text(encoding="utf-8")
    found = [(match.start(), "recipe", match[1]) for match in _FENCE.finditer(text)]
    found += [(match.start(), "command", match[1]) for match in _COMMAND.finditer(text)]
    return [(kind, content) for _, kind, content in sorted(found)]


def test_the_commands_of_the_readme_end_well(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = []
    for kind, content in steps():
        if kind == "recipe":
            (tmp_path / "recipe.yml").write_text(content)
            continue
        words = shlex.split(content, comments=True)
        if words[0] == "demo":
            words.append("--quick")
        if words[0] == "fisher":
            words += ["--examples", "16"]
        done = run(*words)
        assert done.code == 0, f"merge-cli {content}\n{done.err}"
        commands.append(words[0])
        if words[0] == "demo":
            for own, name in _OWN.items():
                (tmp_path / own).symlink_to(tmp_path / "demo" / name)
    assert {"demo", "merge", "plan", "verify", "fisher", "inspect", "mismatch"} <= set(commands)
