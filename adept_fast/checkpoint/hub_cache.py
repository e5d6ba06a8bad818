"""The Hugging Face hub's cache on disk: the snapshots that are in it, and whether they are complete."""

from __future__ import annotations

import re
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.hub_files import CONFIG_FILE, choose_weights, is_index, shards_of
from adept_fast.system.regular_file import FileError, read_regular

DEFAULT_REVISION = "main"
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def cached_file(hub_id: str, revision: str, name: str) -> Path | None:
    """Where the cache has a file of a branch, a tag or a commit; None if it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def cached_snapshot(hub_id: str, revision: str, why: str, *, tokenizer: bool) -> Path | None:
    """The directory of a revision, whose name is the commit; None if the cache has none.

    Raises CheckpointError naming a file that is missing in it, and ``why`` it is not downloaded.
    """
    config = cached_file(hub_id, revision, CONFIG_FILE)
    if config is None:
        return None
    snapshot = config.parent
    where = f"{hub_id}: the snapshot {snapshot} is incomplete, and {why}"
    names = {path.name for path in snapshot.iterdir() if path.is_file()}
    weights = choose_weights(names, where, tokenizer=tokenizer)
    if is_index(weights):
        shards_of(snapshot / weights, names, where)
    return snapshot


def snapshot_in_cache_folder(folder: Path) -> Path | None:
    """The snapshot of ``main`` in a repository's folder of the cache; None for any other directory.

    Raises CheckpointError where that folder has no such snapshot, naming another that it has.
    """
    snapshots = folder / "snapshots"
    if (folder / CONFIG_FILE).exists() or not (snapshots.is_dir() and (folder / "refs").is_dir()):
        return None
    main = folder / "refs" / DEFAULT_REVISION
    try:
        commit = read_regular(main, limit=100).decode("ascii", "replace").strip()
    except FileError:
        commit = ""
    if COMMIT.fullmatch(commit) and (snapshots / commit).is_dir():
        return snapshots / commit
    others = sorted(child for child in snapshots.iterdir() if child.is_dir())
    instead = f"expected the path of a snapshot, such as {others[0]}" if others else "it has no other either"
    raise CheckpointError(f"{folder}: is a folder of the hub's cache without a snapshot of main; {instead}")
