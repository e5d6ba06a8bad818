"""Which files of a repository on the Hugging Face hub a checkpoint needs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.huggingface import INDEX_FILE, SINGLE_FILE, read_json
from adept_fast.checkpoint.torch_bin import BIN_FILE, BIN_INDEX_FILE

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
SMALL_FILES = frozenset(
    {
        CONFIG_FILE,
        "generation_config.json",
        *TOKENIZER_FILES,
        "tokenizer_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "chat_template.json",
        "chat_template.jinja",
        "README.md",  # names the licence
    }
)
# The first of these that a repository has is downloaded, with its shards, and no other.
WEIGHT_FILES = (INDEX_FILE, SINGLE_FILE, BIN_INDEX_FILE, BIN_FILE)


def is_index(weights: str) -> bool:
    """Whether one of WEIGHT_FILES names shards instead of holding tensors."""
    return weights.endswith(".index.json")


def choose_weights(names: Collection[str], where: str, *, tokenizer: bool) -> str:
    """The one of WEIGHT_FILES to take from a directory with files of these names.

    Raises CheckpointError, which begins with ``where``, unless there are a config, weights, and where
    ``tokenizer`` is true a tokenizer.
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
    """The files that an index names; CheckpointError where one is not among ``names``."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing; expected tensor names mapped to file names")
    shards: set[str] = set()
    for shard in weight_map.values():
        if not isinstance(shard, str) or shard not in names:
            raise CheckpointError(f"{where}: {index.name} names {shard!r:.100}, which is missing")
        shards.add(shard)
    return sorted(shards)
