"""The releases that Adept published, known by the MD5 of their tars."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.tar_members import is_tar
from adept_fast.system.progress import progress_bar
from adept_fast.system.regular_file import RegularFile

_BLOCK_BYTES = 2**22
_EXPECTED = "expected the tar of Adept's release, whose MD5 is known"


@dataclass(frozen=True)
class PublishedRelease:
    """A tar as Adept published it, and the licence it is under."""

    file_name: str
    license: str


@dataclass(frozen=True)
class ReleaseChecksum:
    """The MD5 of a tar, in hexadecimal, and the published release that has it, if one does."""

    md5: str
    release: PublishedRelease | None


# By MD5, as Adept's page of the release has them.
PUBLISHED_RELEASES = {
    "cd0320cba9efad9ccd18e9ec4d16ae1b": PublishedRelease("8b_base_model_release.tar", "Apache 2.0"),
    "663aeace07269c44e90f4e8bcd07f32a": PublishedRelease("8b_chat_model_release.tar", "CC-BY-NC 4.0"),
}


def release_checksum(path: Path, *, progress: bool = True) -> ReleaseChecksum:
    """Read a whole tar, and look up its MD5. The tar's contents are not checked: it may be damaged.

    Args:
        progress: show a progress bar on stderr.

    Raises CheckpointError if ``path`` is neither a tar nor named like one, and FileError if it cannot
    be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: is no file here; {_EXPECTED}")
    file = RegularFile(path)
    if not (path.suffix == ".tar" or is_tar(FileRange(file, 0, file.size, str(path)))):
        raise CheckpointError(f"{path}: is not a tar; {_EXPECTED}")
    md5 = _md5(file, progress)
    return ReleaseChecksum(md5, PUBLISHED_RELEASES.get(md5))


def _md5(file: RegularFile, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    block = memoryview(bytearray(min(_BLOCK_BYTES, file.size)))
    with progress_bar(f"verifying {file.path.name}", file.size, "B", shown=progress) as bar:
        for offset in range(0, file.size, _BLOCK_BYTES):
            part = block[: min(_BLOCK_BYTES, file.size - offset)]
            file.read_into(part, offset)
            digest.update(part)
            bar.update(len(part))
    return digest.hexdigest()
