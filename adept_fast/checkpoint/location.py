"""Finds a checkpoint: from a user's path or name to a path on disk."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError, CheckpointNotFoundError
from adept_fast.checkpoint.hub import HubSnapshot, fetch_config, fetch_snapshot, is_hub_id
from adept_fast.checkpoint.hub_files import snapshot_in_cache_folder
from adept_fast.system.regular_file import missing_target

_NOTHING = "there is no such file or directory"


@dataclass(frozen=True)
class Location:
    """A path that exists, and the hub's snapshot there if it was found by a hub id."""

    path: Path
    hub: HubSnapshot | None = None


def demo_path() -> Path:
    """The directory of the small checkpoint that ships with the package."""
    return Path(__file__).resolve().parent.parent / "demo"


def locate(
    path_or_name: str | os.PathLike[str],
    revision: str | None = None,
    *,
    tokenizer: bool = True,
    progress: bool = True,
    token: str | bool | None = None,
) -> Location:
    """Find a checkpoint: ``"demo"``, a path, or a hub id ``owner/name``, whose missing files are downloaded.

    A path that exists is that path, and a Path is never a hub id. Nor is a name whose first folder exists,
    unless a revision is given.

    Args:
        revision: of a hub id: a branch, a tag or a commit; None for ``main``.
        tokenizer: whether a repository without a tokenizer is refused before its weights are downloaded.
        progress: show progress bars of downloads on stderr.
        token: of the hub; None for the one that the hub's command line stored, False for none.

    Raises CheckpointError if nothing is found, and as ``fetch_snapshot`` does.
    """
    path = _local_path(path_or_name, revision)
    if path is not None:
        return Location(path)
    name = os.fspath(path_or_name)
    snapshot = fetch_snapshot(name, revision, tokenizer=tokenizer, progress=progress, token=token)
    return Location(snapshot.path, snapshot)


def locate_config(
    path_or_name: str | os.PathLike[str], revision: str | None = None, *, token: str | bool | None = None
) -> Path:
    """A checkpoint's path as ``locate`` finds it; of a hub id the folder of config.json alone."""
    path = _local_path(path_or_name, revision)
    return fetch_config(os.fspath(path_or_name), revision, token=token).parent if path is None else path


def _local_path(path_or_name: str | os.PathLike[str], revision: str | None) -> Path | None:
    """The path here; None for a hub id. Raises CheckpointError for what can be neither."""
    name = os.fspath(path_or_name)
    path = demo_path() if name == "demo" else _expanded(Path(path_or_name))
    if missing := missing_target(path):
        raise CheckpointError(f"{path}: {missing}")
    if _exists(path):
        if revision is not None:
            raise CheckpointError(
                f"revision is {revision!r}, and {name} is a path here; expected none, or a hub id"
            )
        return snapshot_in_cache_folder(path) or path
    is_path = not isinstance(path_or_name, str)
    if is_path or not is_hub_id(name):
        if revision is not None:
            raise CheckpointError(
                f"revision is {revision!r}, and {name} is no hub id; expected owner/name with a revision"
            )
        no_hub_id = is_path or _looks_like_a_path(name)
        allowed = "a checkpoint, or 'demo'" if no_hub_id else "a checkpoint, 'demo', or a hub id (owner/name)"
        raise CheckpointNotFoundError(f"{path}: {_NOTHING}; expected {allowed}")
    folder = path.parent
    if revision is None and _exists(folder):
        raise CheckpointNotFoundError(
            f"{path}: {_NOTHING} in the folder {folder}; expected a checkpoint, or a hub id with a revision "
            f"such as main"
        )
    return None


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody, who has no home here
        return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError:  # a NUL in it
        return False


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")
