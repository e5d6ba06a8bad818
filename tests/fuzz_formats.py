"""One small checkpoint of every format, to be mutated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoints import (
    demo_tokenizer,
    random_tensors,
    saved,
    small_config,
    write_adept,
    write_directory,
    write_huggingface,
)
from pipeline_checkpoints import pipeline_files

from adept_fast.checkpoint import open_checkpoint
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.checkpoint.save_native import save_native

_CONFIG = small_config(vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TENSORS = random_tensors(_CONFIG, dtype=torch.float16)


def _huggingface(path: Path, shards: int = 1) -> Path:
    return write_huggingface(path, _CONFIG, _TENSORS, demo_tokenizer(), shards=shards)


def _torch_bin(path: Path) -> Path:
    (_huggingface(path) / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(saved(_TENSORS))
    return path


def _saved(path: Path) -> Path:
    """As ``convert`` writes it, with all the files of a tokenizer."""
    save_huggingface(open_checkpoint(_huggingface(path.with_suffix(".source"))), path, progress=False)
    return path


def _tuned(path: Path) -> Path:
    """As transformers saves a tuned model: no sentencepiece model, tokens added, a chat template."""
    _saved(path)
    (path / "tokenizer.model").unlink()
    fast = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    for token_id, name in ((2, "<|im_start|>"), (3, "<|im_end|>")):
        fast["model"]["vocab"][token_id][0] = name
        fast["added_tokens"].append({"id": token_id, "content": name, "special": True, **flags})
    (path / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    (path / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    return path


def _native(path: Path, weights: str, layout: str) -> Path:
    source = open_checkpoint(_huggingface(path.with_suffix(".source")))
    save_native(source, path, weights=weights, layout=layout, progress=False)
    return path


def _adept(path: Path, ranks: int = 1, tar: bool = False) -> Path:
    return write_adept(path, _CONFIG, _TENSORS, demo_tokenizer(), ranks=ranks, tar=tar)


FORMATS: dict[str, Callable[[Path], Path]] = {
    "safetensors": _huggingface,
    "sharded": lambda path: _huggingface(path, shards=2),
    "torch-bin": _torch_bin,
    "saved": _saved,
    "tuned": _tuned,
    "int8": lambda path: _native(path, "int8", "cpu_tiled"),
    "int4": lambda path: _native(path, "int4", "row_major"),
    "adept": _adept,
    "adept-2-ranks": lambda path: _adept(path, ranks=2),
    "adept-tar": lambda path: _adept(path.with_suffix(".tar"), tar=True),
    "adept-2-stages": lambda path: write_directory(path, pipeline_files(2, 1, _CONFIG, _TENSORS)),
}


def build(directory: Path) -> dict[str, Path]:
    """All of them below ``directory``, by name."""
    return {name: write(directory / name) for name, write in FORMATS.items()}
