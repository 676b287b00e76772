"""Zip archives written by torch: the byte ranges of their storages, and the pickle that describes them.

Every member is stored as it is, so that nothing unpacks to more than the file holds, and what the archive's directory
says of a storage must agree with the header before its bytes.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merge_cli.checkpoint.files import Files
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.errors import CheckpointError

# Some 90,000 tensors take as much.
_MOST_PICKLE_BYTES = 32_000_000
# The directory is the largest thing that is read at once; 200,000 members.
_MOST_AT_ONCE = 16_000_000
_LOCAL_BYTES = 30
_ZIP64 = 0xFFFF_FFFF
# Flags of members that are encrypted, in one way or another, or patches.
_UNREADABLE = 0x2061
_OTHER_FORMAT = "is not in torch's zip format (torch 1.6 or later)"


@dataclass(frozen=True)
class Archive:
    """Contents of an archive of torch.

    Attributes:
        path: The file.
        stat: What the system said of it when it was opened.
        pickle: The pickle that describes its tensors.
        storages: Key -> where the bytes of a storage start in the file, and how many there are.
    """

    path: Path
    stat: os.stat_result
    pickle: bytes
    storages: Mapping[str, tuple[int, int]]


def read_archive(path: Path, files: Files, *, hint: str) -> Archive:
    """Read the directory and the pickle of an archive.

    Args:
        path: The file.
        files: The system calls to use.
        hint: What to do about a file that is refused.

    Raises:
        CheckpointError: If it is not in torch's zip format, is damaged, or has a compressed member.
    """
    with read_errors(path):
        fd = files.open_read(path)
        try:
            stat = files.stat(fd)
            file = _File(files, fd, stat.st_size, path)
            with zipfile.ZipFile(file) as archive:
                return _read(archive, file, stat, hint)
        except (CheckpointError, OSError, MemoryError):
            raise
        # zipfile meets damage with whatever its parsing stumbles over: struct, zlib, Unicode and index errors.
        except Exception as error:
            raise CheckpointError(f"{path} {_OTHER_FORMAT}", hint=hint) from error
        finally:
            files.close_read(fd)


def _read(archive: zipfile.ZipFile, file: _File, stat: os.stat_result, hint: str) -> Archive:
    members = sorted(archive.infolist(), key=lambda info: info.header_offset)
    described = [info for info in members if info.filename.endswith("/data.pkl")]
    if len(described) != 1 or len({info.filename for info in members}) < len(members):
        raise CheckpointError(f"{file.path} {_OTHER_FORMAT}", hint=hint)
    root = described[0].filename.removesuffix("data.pkl")
    storages: dict[str, tuple[int, int]] = {}
    ends = [*(info.header_offset for info in members[1:]), archive.start_dir]
    for info, end in zip(members, ends, strict=True):
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{file.path}: member {info.filename[:100]!r} is compressed", hint=hint)
        start = _check_local(file, info, hint)
        if start + info.file_size > end:
            raise CheckpointError(f"{file.path}: member {info.filename[:100]!r} overlaps what follows it", hint=hint)
        if info.filename.startswith(f"{root}data/"):
            storages[info.filename.removeprefix(f"{root}data/")] = (start, info.file_size)
    if f"{root}constants.pkl" in archive.NameToInfo:
        raise CheckpointError(f"{file.path} is a script of torch, which holds code beside its tensors", hint=hint)
    for info in members:
        if info.filename == f"{root}byteorder" and (info.file_size > 6 or archive.read(info) != b"little"):
            raise CheckpointError(f"{file.path} was written in another byte order than little-endian", hint=hint)
    if described[0].file_size > _MOST_PICKLE_BYTES:
        raise CheckpointError(f"{file.path}: its pickle has {described[0].file_size} bytes", hint=hint)
    return Archive(file.path, stat, archive.read(described[0]), storages)


def _check_local(file: _File, info: zipfile.ZipInfo, hint: str) -> int:
    """Return where a member's bytes start, once the header before them agrees with the directory."""
    file.seek(info.header_offset)
    local = file.read(_LOCAL_BYTES)
    name_bytes, extra_bytes = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
    sizes = {int.from_bytes(local[18:22], "little"), int.from_bytes(local[22:26], "little")}
    sound = (
        local[:4] == b"PK\x03\x04"
        and not (int.from_bytes(local[6:8], "little") | info.flag_bits) & _UNREADABLE
        and local[8:10] == b"\0\0"
        and info.volume == 0
        and info.compress_size == info.file_size
        and sizes <= {0, _ZIP64, info.file_size}
        and file.read(name_bytes).decode("utf-8") == info.orig_filename
    )
    if not sound:
        raise CheckpointError(
            f"{file.path}: what stands before member {info.filename[:100]!r} does not agree with the directory",
            hint=hint,
        )
    return info.header_offset + _LOCAL_BYTES + name_bytes + extra_bytes


class _File:
    """An open file as zipfile wants one, which reads little at a time."""

    def __init__(self, files: Files, fd: int, size: int, path: Path) -> None:
        self.path = path
        self._files, self._fd, self._size, self._at = files, fd, size, 0

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the file."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if self._at < 0:
            raise ValueError(f"byte {self._at} of a file")
        return self._at

    def tell(self) -> int:
        """Return the place in the file."""
        return self._at

    def read(self, count: int = -1) -> bytes:
        """Return up to so many bytes, all that are left if negative."""
        left = max(0, self._size - self._at)
        count = left if count < 0 else min(count, left)
        if count > max(_MOST_AT_ONCE, _MOST_PICKLE_BYTES):
            raise CheckpointError(f"{self.path}: its directory has {count} bytes")
        buffer = bytearray(count)
        self._files.read_exactly(self._fd, memoryview(buffer), self._at, self.path)
        self._at += count
        return bytes(buffer)
