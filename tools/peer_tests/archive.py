"""The tests of a source distribution, extracted after its members were checked."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

MAX_MEMBERS = 50_000
MAX_FILE_BYTES = 32 * 2**20
MAX_TOTAL_BYTES = 512 * 2**20
_FOLDERS = ("tests", "src")


class ArchiveError(ValueError):
    """A source distribution that is not extracted."""


def extract(archive: Path, directory: Path) -> None:
    """Write the folders ``tests`` and ``src`` of a ``.tar.gz`` into ``directory``, replacing what is there.

    Raises ArchiveError, before anything is written, for a member that is no regular file or folder, that
    would be outside of the directory, or that is too big, and for too many of them.
    """
    with tarfile.open(archive, "r:gz") as opened:
        files = _files(archive, opened)
        for folder in _FOLDERS:
            shutil.rmtree(directory / folder, ignore_errors=True)
        for member, path in files:
            content = opened.extractfile(member)
            assert content is not None
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content.read(member.size))
    (directory / "tests").mkdir(exist_ok=True)
    (directory / "tests" / "__init__.py").touch()


def _files(archive: Path, opened: tarfile.TarFile) -> list[tuple[tarfile.TarInfo, PurePosixPath]]:
    """The checked files of the folders, each with its path below the distribution's own folder."""
    files, total = [], 0
    for count, member in enumerate(opened, start=1):
        path = PurePosixPath(member.name)
        if count > MAX_MEMBERS:
            raise ArchiveError(f"{archive.name} has more than {MAX_MEMBERS} members")
        if not (member.isreg() or member.isdir()):
            raise ArchiveError(f"{archive.name}: {member.name!r} is no file or folder; expected no links")
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise ArchiveError(f"{archive.name}: {member.name!r} is outside of the archive's folder")
        total += member.size
        if member.size > MAX_FILE_BYTES or total > MAX_TOTAL_BYTES:
            raise ArchiveError(
                f"{archive.name}: {member.name!r} has {member.size} bytes, all until it {total}; "
                f"expected at most {MAX_FILE_BYTES} and {MAX_TOTAL_BYTES}"
            )
        if member.isreg() and len(path.parts) > 2 and path.parts[1] in _FOLDERS:
            files.append((member, PurePosixPath(*path.parts[1:])))
    return files
