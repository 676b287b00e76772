"""How the work is going, on a terminal of 80 columns and where there is none."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from merge_cli.cli.progress import Lines
from merge_cli.cli.render.console import coloured
from merge_cli.text import format_bytes

# Half of two minutes' work is done, and each amount and rate is as wide as they get.
_PROGRAM = """
import time
from merge_cli.cli.progress import example_progress, byte_progress

with byte_progress(visible=True) as listener:
    listener.phase("looking for NaN", 2_000_000_000)
    for i in range(10):
        listener.advance("model.layers.10.self_attn.q_proj.weight", 99_990_000)
        time.sleep(0.06)
with example_progress("measuring", visible=True) as progress:
    for done in range(1, 9):
        progress(done * 16, 1024)
        time.sleep(0.06)
"""


def drawn(columns: int, **environment: str) -> str:
    """Return what a terminal that wide is sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-c", _PROGRAM]
    variables = kept | {"TERM": "xterm"} | environment
    process = subprocess.Popen(command, env=variables, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    parts = []
    # Reading from a terminal that nobody writes to any more is an error.
    while part := _read(ours):
        parts.append(part)
    os.close(ours)
    assert process.wait(timeout=60) == 0, parts
    return b"".join(parts).decode()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def rows(text: str) -> list[str]:
    """Return the rows of a screen, without colours and movements."""
    return [
        row.rstrip()
        for row in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
        if row.strip()
    ]


def test_a_row_fits_eighty_columns_with_all_its_numbers() -> None:
    shown = rows(drawn(80))
    assert max(map(len, shown)) <= 80
    row = next(row for row in reversed(shown) if row.startswith("looking for NaN"))
    assert re.search(r" 50%  999\.9 MB of   2\.0 GB +\d+\.\d [MG]B/s  0:00:\d\d$", row), row
    assert any(re.search(r"^measuring .* 12% +128 of    1,024 ", row) for row in shown), shown
    assert not any("q_proj" in row for row in shown)


def test_a_wide_terminal_is_told_the_tensor_too() -> None:
    assert any("q_proj" in row for row in rows(drawn(140)))


@pytest.mark.parametrize(
    "variables", [{"TERM": "dumb"}, {"MERGE_CLI_PROGRESS": "none"}, {"MERGE_CLI_PROGRESS": "plain"}]
)
def test_no_row_is_drawn_where_none_is_wanted(variables: dict[str, str]) -> None:
    assert drawn(80, **variables) == ""


def test_a_line_is_written_every_half_minute_and_none_before() -> None:
    seconds, said = [0.0], list[str]()
    lines = Lines(format_bytes, said.append, lambda: seconds[0])
    lines.phase("merging", 1_000_000)
    for seconds[0], expected in [(29.9, 0), (30.0, 1), (59.0, 1), (61.0, 2)]:
        lines.advance("w", 100_000)
        assert len(said) == expected
    # 200,000 bytes in 30 s are 6,667 a second, for which the other 800,000 take 120 s.
    assert said[0] == "merging: 200.0 kB of 1.0 MB (20 %), 6.7 kB/s, about 2 min 0 s left"


def test_each_phase_is_counted_from_its_own_beginning() -> None:
    seconds, said = [0.0], list[str]()
    lines = Lines(format_bytes, said.append, lambda: seconds[0])
    lines.phase("measuring", 500)
    lines.advance("w", 500)
    seconds[0] = 20
    lines.phase("merging", 1000)
    seconds[0] = 40
    lines.advance("w", 1000)
    assert said == ["merging: 1.0 kB of 1.0 kB (100 %), 50 B/s"]


def test_short_work_says_nothing_in_a_pipe(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_warnings_are_coloured_on_terminals_where_colours_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert coloured("warning:", "yellow") == "warning:"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert coloured("warning:", "yellow") == "\x1b[33mwarning:\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("warning:", "yellow") == "warning:"
