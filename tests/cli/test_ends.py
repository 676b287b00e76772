"""How the program ends where the system, the console or whoever reads it does not play along."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.folder_lock import lock_folder
from tests.cli.conftest import RECIPE, Run

PROGRAM = [sys.executable, "-c", "from merge_cli.cli import program; program()"]


def started(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words], capture_output=True, encoding="utf-8", errors="replace", timeout=120, check=False, **options
    )  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("words", [["methods", "gradient_matching"], ["plan", "r.yml"], ["--help"]])
def test_letters_that_a_console_cannot_show_are_no_failure(folder: Path, encoding: str, words: list[str]) -> None:
    done = started(*words, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_the_program_as_any_other(folder: Path) -> None:
    for words in (["methods"], ["methods", "ties"], ["schema"], ["inspect", "base", "-v"]):
        with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            err = process.stderr.read()
        assert (process.returncode, err) == (128 + signal.SIGPIPE, ""), words


def test_what_cannot_be_printed_is_no_success(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "methods", "ties"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode in (4, 6)
    assert "Traceback" not in done.stderr


def limited(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


@pytest.mark.parametrize(
    ("kind", "most"), [("NOFILE", 4), ("NOFILE", 8), ("NOFILE", 12), ("AS", 200_000_000), ("AS", 400_000_000)]
)
def test_low_limits_end_in_an_error_or_not_at_all(folder: Path, kind: str, most: int) -> None:
    limit = limited(getattr(resource, f"RLIMIT_{kind}"), most)
    # float64 needs torch, which such limits do not let be loaded.
    words = ["merge", "r.yml", "out", "--set", "dtype=float64"]
    done = started(*words, preexec_fn=limit)
    if "could not open" in done.stderr or "Fatal Python error" in done.stderr or not done.stderr:
        # The interpreter itself did not start.
        return
    assert done.returncode in (0, 3, 4, 6), done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_may_come_from_standard_input(folder: Path) -> None:
    done = started("merge", "-", "out", input=RECIPE)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "model.safetensors").is_file()


def test_a_place_that_takes_no_output_and_one_where_another_process_works_have_codes_of_their_own(
    run: Run, folder: Path
) -> None:
    nowhere = run("merge", "r.yml", "/proc/out")
    assert nowhere.code == 6
    assert nowhere.err.startswith("error: cannot write /proc/out.partial: ")
    with lock_folder(folder / "out.partial", Files(), run="run", busy=""):
        busy = run("merge", "r.yml", "out")
    assert busy.code == 75
    assert busy.err == "error: another process is writing out.partial\n  hint: wait for it, or stop it\n"


@pytest.mark.parametrize(
    "words", [["-h"], ["merge", "-h"], ["fisher", "-h"], ["fisher", "import", "-h"], ["verify", "-h"]]
)
def test_help_fits_a_small_terminal_and_has_examples(
    run: Run, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run(*words, "-h")
    assert done.code == 0
    assert "    merge-cli " in done.out
    assert "<bool>" not in done.out
    options = done.out.partition("Examples:")[0].partition("Environment variables:")[0]
    assert max(map(len, options.splitlines())) <= 80


def test_the_help_of_fisher_shows_the_options_of_measuring(run: Run) -> None:
    done = run("fisher", "--help")
    assert "--data" in done.out
    assert "fisher import" in done.out
