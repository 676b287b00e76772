"""What the program makes of consoles, pipes and limits that are not what it would like."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run


def run_in(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "merge_cli", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("arguments", [("plan", "r.yml"), ("methods", "ties"), ("--help",)])
def test_what_a_console_cannot_show_is_a_question_mark(
    folder: Path, encoding: str, arguments: tuple[str, ...]
) -> None:
    done = run_in(folder, *arguments, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"?" in done.stdout or arguments == ("--help",)


@pytest.mark.parametrize("arguments", [("inspect", "one"), ("--help",), ("methods", "--json")])
def test_a_reader_that_has_gone_ends_the_program_as_its_signal_would(folder: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "merge_cli", *arguments]
        done = subprocess.run(command, cwd=folder, stdout=writing, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_links_that_lead_to_themselves_are_an_error(run: Run, folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    for out in ("loop", "loop/merged"):
        done = run("merge", "r.yml", out)
        assert done.code in (2, 6)
        assert done.err.startswith("error: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x"), 4),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 4),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 6),
        (PermissionError(errno.EACCES, "Permission denied", b"x"), 6),
        (ImportError("libtorch.so: failed to map segment from shared object"), 4),
    ],
)
def test_what_the_system_refuses_is_an_error_wherever_it_comes_from(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("merge_cli.run.merge", fail)
    done = run("merge", "r.yml", "out")
    assert done.code == code
    assert done.err.startswith("error: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_program_ends_changes_nothing(folder: Path, number: signal.Signals) -> None:
    program = f"""
import atexit, os, sys
from merge_cli.cli import program
atexit.register(os.kill, os.getpid(), {int(number)})
sys.argv = ["merge-cli", "methods", "--json"]
program()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
