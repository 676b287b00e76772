"""What is remembered of files that were hashed, and when it counts for nothing."""

import hashlib
import json
import os
import stat
import time
from pathlib import Path

import pytest

from merge_cli.checkpoint import FileIdentity, open_checkpoint
from merge_cli.checkpoint.digest_cache import known_digests, remember_digests
from tests.checkpoints import write_checkpoint

DIGEST = "ab" * 32
LATER = 10 * 10**9


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a cache that is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "merge-cli" / "input-digests.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "one", {"w": [1.0, 2.0]}) / "model.safetensors"


def identity(path: Path) -> FileIdentity:
    return open_checkpoint(path).files[0]


def remember(path: Path) -> None:
    """Remember a digest as if it had been computed ten seconds from now."""
    remember_digests({identity(path): DIGEST}, began_ns=time.time_ns() + LATER)


def known(path: Path) -> dict[Path, str]:
    return known_digests([identity(path)])


@pytest.mark.usefixtures("cache")
def test_what_was_remembered_is_known_until_the_file_is_touched(path: Path) -> None:
    assert known(path) == {}
    remember(path)
    assert known(path) == {path: DIGEST}
    path.chmod(0o600)
    assert known(path) == {}


@pytest.mark.usefixtures("cache")
def test_a_change_with_the_time_set_back_is_not_known(path: Path) -> None:
    remember(path)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known(path) == {}


@pytest.mark.usefixtures("cache")
def test_a_copy_is_another_file(path: Path) -> None:
    remember(path)
    copy = path.with_name("copy.safetensors")
    copy.write_bytes(path.read_bytes())
    assert known(copy) == {}


@pytest.mark.parametrize(("seconds", "kept"), [(1.9, False), (2.1, True)])
def test_a_file_that_was_changed_just_before_it_was_hashed_is_not_kept(
    cache: Path, path: Path, seconds: float, kept: bool
) -> None:
    changed = path.stat().st_ctime_ns
    remember_digests({identity(path): DIGEST}, began_ns=changed + round(seconds * 10**9))
    assert bool(known(path)) is kept
    assert cache.exists() is kept


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"a": 1}', "\u00e4", "[" * 100_000, '{"a": "' + "0" * 2_000_000 + '"}']
)
def test_a_damaged_cache_is_none_and_is_replaced(cache: Path, path: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content, encoding="latin-1")
    assert known(path) == {}
    remember(path)
    assert known(path) == {path: DIGEST}


def test_what_is_no_digest_is_not_taken_for_one(cache: Path, path: Path) -> None:
    remember(path)
    cache.write_text(cache.read_text().replace(DIGEST, DIGEST.upper()))
    assert known(path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_the_cache_may_not_be_written_there_is_none(cache: Path, path: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.parent.chmod(0o500)
    remember(path)
    assert known(path) == {}


def test_where_the_folder_of_the_cache_is_a_file_there_is_none(cache: Path, path: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("")
    remember(path)
    assert known(path) == {}


def test_without_a_home_there_is_no_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", homeless)
    remember(path)
    assert known(path) == {}


def test_the_cache_is_its_owners_and_tells_no_names(cache: Path, path: Path) -> None:
    remember(path)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600
    assert [each.name for each in cache.parent.iterdir()] == [cache.name]
    assert path.name not in cache.read_text()
    assert path.parent.name not in json.loads(cache.read_text())


def test_the_oldest_go_where_there_are_too_many(cache: Path, path: Path) -> None:
    cache.parent.mkdir(parents=True)
    held = {f"{i:032x}": hashlib.sha256(bytes([i % 256])).hexdigest() for i in range(2000)}
    cache.write_text(json.dumps(held))
    remember(path)
    left = list(json.loads(cache.read_text()))
    assert len(left) == 2000
    assert left[:2] == [f"{1:032x}", f"{2:032x}"]
    assert known(path) == {path: DIGEST}
