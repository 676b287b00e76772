import array
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.os_errors import read_errors, write_errors
from merge_cli.errors import CheckpointError, MergeError, ResourceError
from tests.checkpoint.helpers import EIO, ENOSPC, Failing, Trickle


def opened(path: Path, use: Callable[[int], None]) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        use(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_short_reads_are_continued_until_the_view_is_full(most: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(50)))
    buffer = bytearray(20)
    opened(path, lambda fd: Trickle(most).read_exactly(fd, memoryview(buffer), 11, path))
    assert bytes(buffer) == bytes(range(11, 31))


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_short_writes_are_continued_until_the_view_is_written(most: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    opened(path, lambda fd: Trickle(most).write_all(fd, memoryview(bytes(range(20))), 5, path))
    assert path.read_bytes() == bytes(5) + bytes(range(20))


def test_no_call_transfers_more_than_the_system_would() -> None:
    """The system cuts a transfer of 2 GiB short; asking for less keeps that out of the counting."""
    asked: list[int] = []

    class Counting(Files):
        def pread(self, fd: int, view: memoryview, offset: int) -> int:
            asked.append(len(view))
            return len(view)

    class Wide:
        """A view of 5 GB that takes no memory."""

        def __init__(self, size: int = 5_000_000_000) -> None:
            self.size = self.nbytes = size

        def __getitem__(self, part: slice) -> "Wide":
            return Wide(len(range(*part.indices(self.size))))

        def __len__(self) -> int:
            return self.size

    Counting().read_exactly(0, Wide(), 0, Path("x"))  # type: ignore[arg-type]
    assert asked == [2_147_479_552, 2_147_479_552, 705_040_896]


def test_a_file_that_ends_early_is_an_error_that_says_where(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10))
    with pytest.raises(CheckpointError, match=rf"^{path} ends at byte 10, expected 3 bytes more\n  hint: ") as caught:
        opened(path, lambda fd: Trickle(4).read_exactly(fd, memoryview(bytearray(8)), 5, path))
    assert caught.value.exit_code == 3


def test_a_write_that_goes_nowhere_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(ResourceError, match=rf"^cannot write {path}: the system wrote nothing$"):
        opened(path, lambda fd: Trickle(0).write_all(fd, memoryview(b"abc"), 0, path))


def test_nothing_is_read_or_written_of_an_empty_view(tmp_path: Path) -> None:
    files, path = Trickle(9), tmp_path / "x"
    opened(path, lambda fd: files.read_exactly(fd, memoryview(b""), 100, path))
    opened(path, lambda fd: files.write_all(fd, memoryview(b""), 100, path))
    assert files.calls == 0
    assert path.read_bytes() == b""


def test_a_view_of_wider_items_is_a_bug_and_not_half_a_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(16))
    with pytest.raises(TypeError, match="items of format 'f'"):
        opened(path, lambda fd: Files().read_exactly(fd, memoryview(array.array("f", [0] * 4)), 0, path))
    with pytest.raises(TypeError, match="items of format 'f'"):
        opened(path, lambda fd: Files().write_all(fd, memoryview(array.array("f", [0] * 4)), 0, path))


@pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
def test_reserved_bytes_are_on_the_disk_and_the_file_has_that_size(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    opened(path, lambda fd: Files().reserve(fd, size))
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 >= size


def test_reserving_keeps_what_is_there_and_cuts_off_what_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcdef")
    opened(path, lambda fd: Files().reserve(fd, 8))
    assert path.read_bytes() == b"abcdef\0\0"
    opened(path, lambda fd: Files().reserve(fd, 2))
    assert path.read_bytes() == b"ab"


@pytest.mark.parametrize("sync", [True, False])
def test_a_small_file_is_written_whole_in_place_of_a_longer_one(sync: bool, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"old": "and much longer"}')
    Files().write_new(path, b"{}", sync=sync)
    assert path.read_bytes() == b"{}"


@pytest.mark.parametrize("call", ["open_write", "reserve", "pwrite", "sync", "close"])
def test_a_small_file_that_cannot_be_written_is_an_error_that_names_it(call: str, tmp_path: Path) -> None:
    files, path = Failing(EIO, [call]), tmp_path / "config.json"
    with pytest.raises(ResourceError, match=rf"^cannot write {path}: Input/output error$"):
        files.write_new(path, b"{}", sync=True)
    assert files.held == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_comes_with_a_hint(number: int) -> None:
    with pytest.raises(ResourceError) as caught, write_errors(Path("out")):
        raise OSError(number, os.strerror(number))
    assert caught.value.message == f"cannot write out: {os.strerror(number)}"
    assert caught.value.hint == "free some disk space or write elsewhere"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("guard", [read_errors, write_errors])
def test_only_failures_of_the_system_are_translated(guard: Callable[[Path], MergeError]) -> None:
    with pytest.raises(ZeroDivisionError), guard(Path("x")):  # type: ignore[attr-defined]
        raise ZeroDivisionError
    own = CheckpointError("already said")
    with pytest.raises(CheckpointError) as caught, guard(Path("x")):  # type: ignore[attr-defined]
        raise own
    assert caught.value is own


def test_a_folder_can_be_synced_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    Files().sync_folder(tmp_path)
    with pytest.raises(ResourceError, match=rf"^cannot write {tmp_path / 'no'}: No such file or directory\n"):
        Files().sync_folder(tmp_path / "no")
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"Not a directory\n"):
        Files().sync_folder(tmp_path / "file")


def test_descriptors_are_not_inherited_by_other_programs(tmp_path: Path) -> None:
    files = Files()
    for fd in (files.open_write(tmp_path / "x"), files.open_read(tmp_path / "x")):
        assert not os.get_inheritable(fd)
        files.close(fd)


def test_new_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Files().write_new(tmp_path / "x", b"", sync=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_full_disk_is_known_from_reserving(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(ResourceError, match="No space left on device"):
        Failing(ENOSPC, ["reserve"]).write_new(path, b"abc", sync=False)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "socket"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    else:
        path = Path("/dev/zero") if kind == "device" else path
        if kind != "device":
            path.symlink_to("/dev/zero")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CheckpointError, match=rf"^cannot read {path}: (it is not a regular file|No such device)"):
        Files().read_whole(path, most=10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_small_file_is_read_whole_and_a_larger_one_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert Trickle(3).read_whole(path, most=10) == b"0123456789"
    with pytest.raises(CheckpointError, match=rf"^{path} has 10 bytes, expected 9 at most\n  hint: "):
        Files().read_whole(path, most=9)
    with pytest.raises(CheckpointError, match="Is a directory"):
        Files().read_whole(tmp_path, most=9)


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1, 3_000_000])
def test_a_file_is_copied_in_parts_byte_by_byte(size: int, tmp_path: Path) -> None:
    content = bytes(number % 251 for number in range(size))
    (tmp_path / "x").write_bytes(content)
    files = Trickle(700_001)
    files.copy(tmp_path / "x", tmp_path / "y", sync=True)
    assert (tmp_path / "y").read_bytes() == content


@pytest.mark.parametrize(("call", "kind"), [("pread", CheckpointError), ("pwrite", ResourceError)])
def test_a_copy_that_fails_says_on_which_side_and_leaves_nothing_open(
    call: str, kind: type[MergeError], tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    files = Failing(EIO, [call])
    with pytest.raises(kind, match=rf"{tmp_path / ('x' if call == 'pread' else 'y')}: Input/output error"):
        files.copy(tmp_path / "x", tmp_path / "y", sync=False)
    assert files.held == []


def test_a_folder_is_made_with_those_on_the_way_and_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    Files().make_folder(tmp_path / "a" / "b")
    Files().make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        Files().make_folder(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, 4), (errno.EDQUOT, 4), (errno.EFBIG, 4), (errno.ENOMEM, 4), (errno.EMFILE, 4), (errno.ENFILE, 4),
        (errno.EIO, 4), (errno.ENOLCK, 4), (errno.EACCES, 6), (errno.EPERM, 6), (errno.EROFS, 6), (errno.ENOTDIR, 6),
        (errno.ENOENT, 6), (errno.ELOOP, 6), (errno.ENAMETOOLONG, 6),
    ],
)  # fmt: skip
def test_a_place_that_is_closed_has_another_code_than_one_that_is_full(number: int, code: int) -> None:
    with pytest.raises(ResourceError) as caught, write_errors(Path("out")):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == code
