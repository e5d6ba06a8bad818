"""One small checkpoint of every format, to be mutated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from checkpoints import (
    demo_tokenizer,
    random_tensors,
    small_config,
    write_adept,
    write_huggingface,
)

from adept_fast.checkpoint import open_checkpoint
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.checkpoint.save_native import save_native

_CONFIG = small_config(vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
_TENSORS = random_tensors(_CONFIG, dtype=torch.float16)


def _huggingface(path: Path, shards: int = 1) -> Path:
    return write_huggingface(path, _CONFIG, _TENSORS, demo_tokenizer(), shards=shards)


def _saved(path: Path) -> Path:
    """As ``convert`` writes it, with all the files of a tokenizer."""
    save_huggingface(open_checkpoint(_huggingface(path.with_suffix(".source"))), path, progress=False)
    return path


def _native(path: Path, weights: str) -> Path:
    source = open_checkpoint(_huggingface(path.with_suffix(".source")))
    save_native(source, path, weights=weights, progress=False)
    return path


def _adept(path: Path, ranks: int = 1, tar: bool = False) -> Path:
    return write_adept(path, _CONFIG, _TENSORS, demo_tokenizer(), ranks=ranks, tar=tar)


FORMATS: dict[str, Callable[[Path], Path]] = {
    "safetensors": _huggingface,
    "sharded": lambda path: _huggingface(path, shards=2),
    "saved": _saved,
    "int8": lambda path: _native(path, "int8"),
    "int4": lambda path: _native(path, "int4"),
    "adept": _adept,
    "adept-2-ranks": lambda path: _adept(path, ranks=2),
    "adept-tar": lambda path: _adept(path.with_suffix(".tar"), tar=True),
}


def build(directory: Path) -> dict[str, Path]:
    """All of them below ``directory``, by name."""
    return {name: write(directory / name) for name, write in FORMATS.items()}
