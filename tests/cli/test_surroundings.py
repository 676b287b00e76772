"""What the program makes of links, limits and refusals that it did not expect."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run


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
