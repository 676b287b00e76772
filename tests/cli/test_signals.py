"""A signal ends the program with its code and leaves nothing behind but what the same command can go on from."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merge_cli.stream.journal import read_journal
from tests.cli.conftest import Run, listing
from tests.crash.cases import contents

# Each write takes a while, and the first one is announced: a signal then arrives in the middle of the work.
_PROGRAM = """
import sys, time
from pathlib import Path
from merge_cli.checkpoint import Files
from merge_cli.cli import program

write = Files.pwrite
calls = []

def slow(self, fd, view, offset):
    calls.append(offset)
    if len(calls) == 2:
        Path("working").touch()
    # The weights and the journal are written by then: whoever looks for what is noted has time to.
    time.sleep({pause} * (1 if len(calls) <= 6 else 6))
    return write(self, fd, view, offset)

Files.pwrite = slow
sys.argv = ["merge-cli", *sys.argv[1:]]
program()
"""


def started(folder: Path, *arguments: str, pause: float = 2, ignored: bool = False) -> subprocess.Popen[str]:
    """Start a merge and return once it is in the middle of its work."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(pause=pause), "merge", "r.yml", "out", "--threads", "1", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler),
    )
    for _ in range(1200):
        if (folder / "working").exists():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (folder / "working").unlink()
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_merge_that_is_stopped_leaves_nothing(folder: Path, number: signal.Signals, code: int, word: str) -> None:
    before = listing(folder)
    process = started(folder, "--json")
    assert (folder / "out.partial").is_dir()
    process.send_signal(number)
    time.sleep(0.1)
    # Impatience must not cut the clean-up short.
    process.send_signal(number)
    returned, out, err = ended(process)
    assert returned == code, err
    assert err == f"error: {word}; nothing was written\n"
    said = {"error": f"{word}; nothing was written", "hint": None, "exit_code": code}
    assert json.loads(out) == {"format": 1, **said}
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_merge_that_is_stopped_when_something_is_done_goes_on_from_there(
    folder: Path, run: Run, number: signal.Signals, code: int, word: str
) -> None:
    process = started(folder, pause=0.7)
    journal = folder / "out.partial" / ".journal"
    # One of two tensors is noted; the other takes a while yet.
    for _ in range(1200):
        past = read_journal(journal) if journal.parent.is_dir() else None
        if past is not None and past.records:
            break
        time.sleep(0.02)
    process.send_signal(number)
    returned, _, err = ended(process)
    assert returned == code, err
    assert err == (
        f"error: {word}\n  hint: what is done is kept in out.partial: run the same command again to resume\n"
    )
    assert not (folder / "out").exists()
    done = run("merge", "r.yml", "out", "--json")
    assert done.code == 0
    assert json.loads(done.out)["resumed_bytes"] > 0
    (folder / "out").rename(folder / "resumed")
    assert run("merge", "r.yml", "out").code == 0
    assert contents(folder / "resumed") == contents(folder / "out")


def test_a_signal_that_was_to_be_ignored_is_ignored(folder: Path) -> None:
    process = started(folder, pause=0.1, ignored=True)
    process.send_signal(signal.SIGINT)
    returned, out, err = ended(process)
    assert (returned, err) == (0, "")
    assert out.startswith("out: ")
    assert (folder / "out" / "model.safetensors").is_file()
