"""Finds the files of Adept's release in a directory, or in its tar, which is read in place."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.tar_members import compression_of, is_tar, tar_members
from adept_fast.system.file_limits import max_bytes
from adept_fast.system.regular_file import is_there

TRACKER_FILE = "latest_checkpointed_iteration.txt"
RANK_FILE = "model_optim_rng.pt"
# The names of a rank's file. The distributed optimizer writes the second one, and its own state beside it.
_RANK_FILES = (RANK_FILE, "model_rng.pt")
_OPTIMIZER_FILE = "optim.pt"
TOKENIZER_FILE = "adept_vocab.model"

_RANK_FOLDER = re.compile(r"mp_rank_(\d+)(_\d+)?", re.ASCII)
_ITERATION_FOLDER = re.compile(r"iter_\d{7,}", re.ASCII)
# The tokenizer is at most this far above the folder of the mp_rank_* folders: its iter_*, the release's root.
_LEVELS_ABOVE_RANKS = 2


@dataclass(frozen=True)
class Release:
    """The files of a release: ``stages`` has the ranks' files of each pipeline stage, both in order.

    ``left_unread`` are the names of files beside the ranks' that were not read.
    """

    stages: tuple[tuple[FileRange, ...], ...]
    tokenizer: FileRange
    left_unread: tuple[str, ...]


class _Directory:
    """A folder on disk."""

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

    def has(self, name: str) -> bool:
        """Whether there is anything of that name; it is not opened."""
        return is_there(self._path / name)

    def file(self, name: str) -> FileRange | None:
        """The file of that name, None if there is none; CheckpointError for one that is not regular."""
        return FileRange.whole(self._path / name) if self.has(name) else None


class _TarFolder:
    """A folder in a tar, with the members of ``_Directory``."""

    def __init__(
        self, archive: FileRange, members: dict[PurePosixPath, list[tarfile.TarInfo]], path: PurePosixPath
    ):
        self._archive = archive
        self._members = members
        self._path = path
        self.name = path.name
        self.label = f"{archive.label}:{path}" if path.name else archive.label

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

    def has(self, name: str) -> bool:
        return self._path / name in self._members

    def file(self, name: str) -> FileRange | None:
        path = self._path / name
        entries = self._members.get(path)
        label = f"{self._archive.label}:{path}"
        if entries is None:
            return None
        if len(entries) > 1:
            raise CheckpointError(f"{label}: is in the tar {len(entries)} times; expected once")
        member = entries[0]
        if not member.isreg() or member.issparse():
            raise CheckpointError(f"{label}: is a link, a device or sparse; expected a regular file")
        if not 0 <= member.size <= self._archive.size - member.offset_data:
            raise CheckpointError(
                f"{label}: has {member.size} bytes by its header; expected at most what the tar has there"
            )
        return FileRange(self._archive.file, member.offset_data, member.size, label)


_Folder = _Directory | _TarFolder


def is_release(path: Path, archive: FileRange | None = None) -> bool:
    """Whether it looks like a release: a directory of one, or a tar (``find_release`` refuses compressed)."""
    if archive is not None:
        return compression_of(archive) is not None or is_tar(archive)
    folder = _Directory(path)
    return _RANK_FOLDER.fullmatch(folder.name) is not None or _has_model(folder)


def find_release(path: Path, archive: FileRange | None = None) -> Release:
    """Find the ranks' files and the tokenizer of a release; ``archive`` is the tar if ``path`` is one.

    ``path`` is a tar, or a directory: the release's root, an ``iter_*`` directory, one that holds
    ``mp_rank_*`` directories, or an ``mp_rank_*`` directory, which stands for its siblings too. The tokenizer
    is searched in that directory, then beside the ``mp_rank_*`` directories and up to two levels above.

    Raises CheckpointError, which names a file or directory that is missing, out of sequence, or not plain.
    """
    start = _Directory(path) if archive is None else _tar_root(archive)
    home = _folder_of_ranks(start)
    stages = _rank_folders(home)
    files, left_unread = _rank_files(stages)
    looked_in = [start, *_upwards(home, _LEVELS_ABOVE_RANKS)]
    for folder in looked_in:
        tokenizer = folder.file(TOKENIZER_FILE)
        if tokenizer is not None:
            return Release(files, tokenizer, left_unread)
    raise CheckpointError(
        f"{start.label}: {TOKENIZER_FILE} is missing; expected it there, or at most "
        f"{_LEVELS_ABOVE_RANKS} levels above {home.label}"
    )


def _has_model(folder: _Folder) -> bool:
    names = folder.folders()
    return folder.has(TRACKER_FILE) or any(
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
    text = tracker.read(max_bytes(TRACKER_FILE)).decode("ascii", "replace").strip()
    if not (text.isascii() and text.isdigit()):
        raise CheckpointError(f"{tracker.label}: holds {text!r}; expected the number of an iteration")
    return f"iter_{int(text):07d}"


def _rank_folders(home: _Folder) -> list[list[_Folder]]:
    """The ranks' folders of each pipeline stage: mp_rank_TT, or mp_rank_TT_PPP if there are stages."""
    folders = home.folders()
    found = {name: match for name in folders if (match := _RANK_FOLDER.fullmatch(name))}
    if not found:
        raise CheckpointError(f"{home.label}: holds no mp_rank_* directory")
    staged = {match[2] is not None for match in found.values()}
    if len(staged) > 1:
        raise CheckpointError(
            f"{home.label}: holds mp_rank_* directories with and without the number of a pipeline stage; "
            f"expected either mp_rank_00, mp_rank_01, … or mp_rank_00_000, mp_rank_00_001, …"
        )
    ranks = len({match[1] for match in found.values()})
    stages = len({match[2] for match in found.values()})
    grid: list[list[_Folder]] = []
    for stage in range(stages):
        grid.append([])
        for rank in range(ranks):
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if True in staged else "")
            if name not in found:
                raise CheckpointError(
                    f"{home.label}: {name} is missing; expected {ranks} ranks from mp_rank_00 on"
                    + (f", each in {stages} stages" if True in staged else "")
                )
            grid[-1].append(folders[name])
    return grid


def _rank_files(stages: list[list[_Folder]]) -> tuple[tuple[tuple[FileRange, ...], ...], tuple[str, ...]]:
    """The file of each folder, of the same name in all; and the names of other files, which are not read."""
    folders = [folder for stage in stages for folder in stage]
    name = next((name for name in _RANK_FILES if all(folder.has(name) for folder in folders)), RANK_FILE)
    others = [other for other in (*_RANK_FILES, _OPTIMIZER_FILE) if other != name]
    left = tuple(f"{other} beside {name}" for other in others if any(folder.has(other) for folder in folders))
    return tuple(tuple(_rank_file(folder, name) for folder in stage) for stage in stages), left


def _rank_file(folder: _Folder, name: str) -> FileRange:
    file = folder.file(name)
    if file is None:
        raise CheckpointError(f"{folder.label}: {name} is missing")
    return file


def _upwards(folder: _Folder, levels: int) -> Iterator[_Folder]:
    at: _Folder | None = folder
    for _ in range(levels + 1):
        if at is None:
            return
        yield at
        at = at.parent


def _tar_root(archive: FileRange) -> _Folder:
    """The folder of a tar that holds the model: its root, or the one top-level folder that does."""
    compression = compression_of(archive)
    if compression is not None:
        raise CheckpointError(
            f"{archive.label}: is compressed with {compression}; "
            f"expected the tar itself, which is read in place"
        )
    root = _TarFolder(archive, tar_members(archive), PurePosixPath())
    if _has_model(root):
        return root
    homes = [folder for folder in root.folders().values() if _has_model(folder)]
    if len(homes) != 1:
        raise CheckpointError(
            f"{archive.label}: {len(homes)} of its folders hold a model; "
            f"expected one with iter_* or mp_rank_* in it"
        )
    return homes[0]
