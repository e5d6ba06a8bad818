"""The files of a hub repository that a checkpoint needs, and the snapshots in the cache of the hub."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.huggingface import (
    BIN_FILE,
    BIN_INDEX_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    read_weight_map,
)
from adept_fast.checkpoint.tokenizer_files import FAST_FILE, JSON_FILES, MODEL_FILE, TEMPLATE_FILE
from adept_fast.system.regular_file import FileError, read_regular

DEFAULT_REVISION = "main"
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
TOKENIZER_FILES = (MODEL_FILE, FAST_FILE)
_CARD_FILE = "README.md"  # names the licence
SMALL_FILES = frozenset((CONFIG_FILE, *TOKENIZER_FILES, *JSON_FILES, TEMPLATE_FILE, _CARD_FILE))
# The first of these that a repository has is downloaded, with its shards, and no other.
WEIGHT_FILES = (INDEX_FILE, SINGLE_FILE, BIN_INDEX_FILE, BIN_FILE)


def is_index(weights: str) -> bool:
    """Whether one of WEIGHT_FILES names shards instead of holding tensors."""
    return weights.endswith(".index.json")


def choose_weights(names: Collection[str], where: str, *, tokenizer: bool) -> str:
    """The one of WEIGHT_FILES to read from a directory with files of these names.

    Raises CheckpointError, which begins with ``where``, unless there are a config, weights and,
    if ``tokenizer`` is true, a tokenizer.
    """
    if CONFIG_FILE not in names:
        raise CheckpointError(
            f"{where}: {CONFIG_FILE} is missing; expected a checkpoint in Hugging Face's format"
        )
    if tokenizer and not any(name in names for name in TOKENIZER_FILES):
        raise CheckpointError(f"{where}: {' and '.join(TOKENIZER_FILES)} are missing; expected one of them")
    chosen = next((name for name in WEIGHT_FILES if name in names), None)
    if chosen is None:
        raise CheckpointError(
            f"{where}: has no weights; expected {', '.join(WEIGHT_FILES[:-1])} or {WEIGHT_FILES[-1]}"
        )
    return chosen


def shards_of(index: Path, names: Collection[str], where: str) -> list[str]:
    """The files that an index names; CheckpointError if one is not among ``names``."""
    shards: set[str] = set()
    for shard in read_weight_map(index).values():
        if not isinstance(shard, str) or shard not in names:
            raise CheckpointError(f"{where}: {index.name} names {shard!r:.100}, which is missing")
        shards.add(shard)
    return sorted(shards)


def cached_file(hub_id: str, revision: str, name: str) -> Path | None:
    """The path in the cache of a file of a branch, tag or commit; None if it is not cached."""
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

    Raises CheckpointError if that folder has no such snapshot, naming another that it has.
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
