"""Where rows come from, and what is left behind by reading them."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import pytest

from merge_cli.fisher import Source
from merge_cli.fisher.data import open_rows
from tests.fisher.folders import letters, save_rows

READ = """
import sys
from merge_cli.fisher import Source
from merge_cli.fisher.data import open_rows
print([row["label"] for row in open_rows(Source(sys.argv[1], shuffle=False))])
"""


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_no_copy_of_somebodys_files_is_left_anywhere(tmp_path: Path) -> None:
    save_rows(tmp_path / "rows.jsonl", letters(5))
    datasets.Dataset.from_list(letters(5)).save_to_disk(str(tmp_path / "saved"))
    before = everything(tmp_path)
    for name in ("rows.jsonl", "saved"):
        rows = open_rows(Source(str(tmp_path / name)))
        assert sorted(row["label"] for row in rows) == [0, 0, 1, 1, 2]
        assert everything(tmp_path) > before
        del rows
        assert everything(tmp_path) == before


def test_files_are_read_where_there_is_no_home_and_the_end_of_the_program_leaves_nothing(tmp_path: Path) -> None:
    data = save_rows(tmp_path / "rows.jsonl", letters(4))
    missing = str(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("no folder can be made here")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(data)], capture_output=True, text=True, check=False,
        env=environment | {"HOME": missing, "TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)) == (0, [0, 1, 2, 0])
    assert list((tmp_path / "temporary").iterdir()) == []
