"""Lists the members of an untrusted tar, with limits on their number, memory and time."""

from __future__ import annotations

import os
import tarfile
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.file_range import FileRange

_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_MAX_MEMBERS = 100_000  # a release has a dozen; a hostile tar could list them for hours
# tarfile reads a long name or a list of attributes at once, whatever length its header has.
_MAX_MEMBER_HEADER_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 128 * 2**20

# Errors of tarfile on damaged or hostile headers: each name in a chain of long names nests a call.
_PARSE_ERRORS = (
    tarfile.TarError,
    OSError,
    EOFError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RecursionError,
    ValueError,
)


def compression_of(file: FileRange) -> str | None:
    """The name of the file's compression, by its first bytes; None if it has none."""
    beginning = file.read_at(0, min(8, file.size))
    return next((name for magic, name in _COMPRESSIONS.items() if beginning.startswith(magic)), None)


def is_tar(file: FileRange) -> bool:
    """Whether the file begins with the header of a tar's member."""
    block = file.read_at(0, min(tarfile.BLOCKSIZE, file.size))
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def tar_members(archive: FileRange) -> dict[PurePosixPath, list[tarfile.TarInfo]]:
    """Every member by its name; a repeated one has several entries.

    Raises CheckpointError for a tar that is damaged, whose members point outside, or whose headers are more
    or longer than those of any release.
    """
    members: dict[PurePosixPath, list[tarfile.TarInfo]] = {}
    previous = -1
    headers = _Headers(archive)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:") as opened:
            for count, member in enumerate(opened, start=1):
                headers.end_member()
                name = PurePosixPath(member.name)
                if not member.name or name.is_absolute() or ".." in name.parts:  # "/" is read as ""
                    raise CheckpointError(
                        f"{archive.label}: the member {member.name!r:.200} points outside; "
                        f"expected relative paths without .."
                    )
                if member.offset <= previous or count > _MAX_MEMBERS:
                    raise CheckpointError(
                        f"{archive.label}: the tar's headers run in a circle or number over {_MAX_MEMBERS}"
                    )
                previous = member.offset
                members.setdefault(name, []).append(member)
    except CheckpointError:
        raise
    except _PARSE_ERRORS as error:
        raise CheckpointError(f"{archive.label}: not a tar that can be read ({error})") from error
    return members


class _Headers:
    """The file for ``tarfile``, unbuffered since contents are skipped, with a limit of bytes."""

    def __init__(self, archive: FileRange) -> None:
        self._archive = archive
        self._position = 0
        self._of_member = self._of_all = 0

    def end_member(self) -> None:
        self._of_member = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or position < 0:
            raise OSError(f"seek to {position}, before the beginning")
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        self._of_member += size
        self._of_all += size
        if size < 0 or self._of_member > _MAX_MEMBER_HEADER_BYTES or self._of_all > _MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{self._archive.label}: the tar has headers of over {_MAX_MEMBER_HEADER_BYTES} bytes for a "
                f"member, or {_MAX_HEADER_BYTES} for all"
            )
        contents = self._archive.read_at(
            min(self._position, self._archive.size), max(min(size, self._archive.size - self._position), 0)
        )
        self._position += len(contents)
        return contents
