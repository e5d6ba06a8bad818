"""Where the pieces of Adept's release lie: in a directory, or in the tar it ships in, read in place."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.file_range import FileRange

TRACKER_FILE = "latest_checkpointed_iteration.txt"
RANK_FILE = "model_optim_rng.pt"
TOKENIZER_FILE = "adept_vocab.model"

_RANK_FOLDER = re.compile(r"mp_rank_(\d+)(_\d+)?", re.ASCII)
_ITERATION_FOLDER = re.compile(r"iter_\d{7,}", re.ASCII)
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_MOST_MEMBERS = 100_000  # a release has a dozen; a hostile tar could list them for hours
# A tokenizer lies at most this far above the folder of the mp_rank_* folders: its iter_*, the release's root.
_LEVELS_ABOVE_RANKS = 2


@dataclass(frozen=True)
class Release:
    """One FileRange per tensor-parallel rank, in order, and that of the tokenizer."""

    ranks: tuple[FileRange, ...]
    tokenizer: FileRange


class _Folder(Protocol):
    """A folder on disk or in a tar."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def parent(self) -> _Folder | None: ...

    def folders(self) -> dict[str, _Folder]: ...

    def file(self, name: str) -> FileRange | None:
        """The file of that name, None where there is none; CheckpointError for one that is not regular."""


class _Directory:
    def __init__(self, path: Path) -> None:
        # Absolute, so that "." has a name and parents; not resolved, so that links keep their neighbours.
        self._path = Path(os.path.abspath(path))
        self.name = self._path.name
        self.label = str(self._path)

    @property
    def parent(self) -> _Folder | None:
        return _Directory(self._path.parent) if self._path.parent != self._path else None

    def folders(self) -> dict[str, _Folder]:
        try:
            return {child.name: _Directory(child) for child in sorted(self._path.iterdir()) if child.is_dir()}
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be listed ({error.strerror or error})") from error

    def file(self, name: str) -> FileRange | None:
        path = self._path / name
        return FileRange.whole(path) if os.path.lexists(path) else None


class _TarFolder:
    def __init__(
        self, archive: Path, members: dict[PurePosixPath, list[tarfile.TarInfo]], path: PurePosixPath
    ):
        self._archive = archive
        self._members = members
        self._path = path
        self.name = path.name
        self.label = f"{archive}:{path}" if path.name else str(archive)

    @property
    def parent(self) -> _Folder | None:
        return _TarFolder(self._archive, self._members, self._path.parent) if self._path.name else None

    def folders(self) -> dict[str, _Folder]:
        depth = len(self._path.parts)
        names = {
            path.parts[depth]
            for path, entries in self._members.items()
            if path.parts[:depth] == self._path.parts
            and (len(path.parts) > depth + 1 or (len(path.parts) == depth + 1 and entries[-1].isdir()))
        }
        return {name: _TarFolder(self._archive, self._members, self._path / name) for name in sorted(names)}

    def file(self, name: str) -> FileRange | None:
        path = self._path / name
        entries = self._members.get(path)
        label = f"{self._archive}:{path}"
        if entries is None:
            return None
        if len(entries) > 1:
            raise CheckpointError(f"{label}: is in the tar {len(entries)} times; expected once")
        member = entries[0]
        if not member.isreg() or member.issparse():
            raise CheckpointError(f"{label}: is a link, a device or sparse; expected a regular file")
        archive = FileRange.whole(self._archive)
        if member.offset_data + member.size > archive.size:
            raise CheckpointError(f"{label}: has {member.size} bytes by its header, but the tar ends before")
        return FileRange(archive.file, member.offset_data, member.size, label)


def is_release(path: Path) -> bool:
    """Whether ``find_release`` knows what to do with the path (a compressed tar: refuse it by name)."""
    if path.is_dir():
        folder = _Directory(path)
        return _RANK_FOLDER.fullmatch(folder.name) is not None or _has_model(folder)
    return path.is_file() and (_compression(path) is not None or tarfile.is_tarfile(path))


def find_release(path: Path) -> Release:
    """Find the ranks' files and the tokenizer of a release.

    ``path`` is a tar, or a directory: the release's root, an ``iter_*`` directory, one that holds
    ``mp_rank_*`` directories, or an ``mp_rank_*`` directory, which stands for its siblings too. The tokenizer
    is looked for in that directory, then beside the ``mp_rank_*`` directories and up to two levels above.

    Raises CheckpointError naming what is missing, out of sequence, or not a plain file.
    """
    start = _Directory(path) if path.is_dir() else _tar_root(path)
    home = _folder_of_ranks(start)
    ranks = tuple(_rank_files(home))
    looked_in = [start, *_upwards(home, _LEVELS_ABOVE_RANKS)]
    for folder in looked_in:
        tokenizer = folder.file(TOKENIZER_FILE)
        if tokenizer is not None:
            return Release(ranks, tokenizer)
    raise CheckpointError(
        f"{start.label}: {TOKENIZER_FILE} is missing; expected it there, or at most "
        f"{_LEVELS_ABOVE_RANKS} levels above {home.label}"
    )


def _has_model(folder: _Folder) -> bool:
    names = folder.folders()
    return folder.file(TRACKER_FILE) is not None or any(
        _RANK_FOLDER.fullmatch(name) or _ITERATION_FOLDER.fullmatch(name) for name in names
    )


def _folder_of_ranks(start: _Folder) -> _Folder:
    if _RANK_FOLDER.fullmatch(start.name) and start.parent is not None:
        return start.parent
    folders = start.folders()
    if any(_RANK_FOLDER.fullmatch(name) for name in folders):
        return start
    tracker = start.file(TRACKER_FILE)
    if tracker is not None:
        name = _iteration_of(tracker)
        if name not in folders:
            raise CheckpointError(f"{tracker.label}: names the directory {name}, which is not there")
        return folders[name]
    iterations = [name for name in folders if _ITERATION_FOLDER.fullmatch(name)]
    if len(iterations) > 1:
        raise CheckpointError(
            f"{start.label}: holds {len(iterations)} iter_* directories and no {TRACKER_FILE}; "
            f"expected the path of one of them"
        )
    if not iterations:
        raise CheckpointError(f"{start.label}: holds no mp_rank_* directory; expected Adept's release")
    return folders[iterations[0]]


def _iteration_of(tracker: FileRange) -> str:
    text = tracker.read(limit=64).decode("ascii", "replace").strip()
    if not (text.isascii() and text.isdigit()):
        raise CheckpointError(f"{tracker.label}: holds {text!r}; expected the number of an iteration")
    return f"iter_{int(text):07d}"


def _rank_files(home: _Folder) -> Iterator[FileRange]:
    folders = {name: folder for name, folder in home.folders().items() if _RANK_FOLDER.fullmatch(name)}
    for name in folders:
        if name.count("_") > 2:
            raise CheckpointError(
                f"{home.label}: {name} is a pipeline-parallel shard; expected tensor-parallel ones alone "
                f"(mp_rank_00, mp_rank_01, …)"
            )
    expected = [f"mp_rank_{rank:02d}" for rank in range(len(folders))]
    if not expected:
        raise CheckpointError(f"{home.label}: holds no mp_rank_* directory")
    for name in expected:
        if name not in folders:
            raise CheckpointError(
                f"{home.label}: {name} is missing; expected {len(folders)} directories from mp_rank_00 on"
            )
        file = folders[name].file(RANK_FILE)
        if file is None:
            raise CheckpointError(f"{folders[name].label}: {RANK_FILE} is missing")
        yield file


def _upwards(folder: _Folder, levels: int) -> Iterator[_Folder]:
    at: _Folder | None = folder
    for _ in range(levels + 1):
        if at is None:
            return
        yield at
        at = at.parent


def _tar_root(path: Path) -> _Folder:
    """The folder of a tar that holds the model: its root, or the one top-level folder that does."""
    compression = _compression(path)
    if compression is not None:
        raise CheckpointError(
            f"{path}: is compressed with {compression}; expected the tar itself, which is read in place"
        )
    root = _TarFolder(path, _tar_members(path), PurePosixPath())
    if _has_model(root):
        return root
    homes = [folder for folder in root.folders().values() if _has_model(folder)]
    if len(homes) != 1:
        raise CheckpointError(
            f"{path}: {len(homes)} of its folders hold a model; expected one with iter_* or mp_rank_* in it"
        )
    return homes[0]


def _tar_members(path: Path) -> dict[PurePosixPath, list[tarfile.TarInfo]]:
    members: dict[PurePosixPath, list[tarfile.TarInfo]] = {}
    previous = -1
    try:
        with tarfile.open(path, "r:") as archive:
            for count, member in enumerate(archive, start=1):
                name = PurePosixPath(member.name)
                if not member.name or name.is_absolute() or ".." in name.parts:  # "/" is read as ""
                    raise CheckpointError(
                        f"{path}: the member {member.name!r} points outside; "
                        f"expected relative paths without .."
                    )
                if member.offset <= previous or count > _MOST_MEMBERS:
                    raise CheckpointError(
                        f"{path}: the tar's headers run in a circle or number over {_MOST_MEMBERS}"
                    )
                previous = member.offset
                members.setdefault(name, []).append(member)
    except (tarfile.TarError, OSError, EOFError, ArithmeticError, LookupError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a tar that can be read ({error})") from error
    return members


def _compression(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            beginning = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    return next((name for magic, name in _COMPRESSIONS.items() if beginning.startswith(magic)), None)
