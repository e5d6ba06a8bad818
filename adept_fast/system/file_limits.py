"""The maximum size of each kind of file that is read whole: several times the size of real ones."""

from __future__ import annotations

from pathlib import PurePath

_MIB = 2**20
_MAX_BYTES = {
    "tokenizer.json": 64 * _MIB,  # 260 000 pieces need 17 MB
    "tokenizer.model": 64 * _MIB,
    "adept_vocab.model": 64 * _MIB,
    "tokenizer_config.json": 16 * _MIB,  # a list of added tokens, or a chat template
    "latest_checkpointed_iteration.txt": 64,
}
_MAX_INDEX_BYTES = 32 * _MIB  # 4096 layers of 16 tensors, a line of 130 bytes each, need 9 MB
_MAX_BYTES_OF_ANOTHER = _MIB  # config.json and generation_config.json have a few kilobytes


def max_bytes(path: str | PurePath) -> int:
    """The maximum for a file of that name, in bytes."""
    name = PurePath(path).name
    if name.endswith(".index.json"):
        return _MAX_INDEX_BYTES
    if name.endswith(".model"):
        return _MAX_BYTES["tokenizer.model"]
    return _MAX_BYTES.get(name, _MAX_BYTES_OF_ANOTHER)
