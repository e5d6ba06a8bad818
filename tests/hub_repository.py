"""A repository of a small model on a hub of localhost, and what a test refuses of it."""

from __future__ import annotations

from typing import Any

import pytest

from adept_fast import CheckpointError
from adept_fast.checkpoint import locate
from adept_fast.config import ConfigError

ID = "adept/small"
SHARDS = [f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
NEEDED = ["config.json", "README.md", "tokenizer.model", "tokenizer_config.json", INDEX, *SHARDS]
NOT_NEEDED = [
    "pytorch_model.bin",
    "model.fp16.safetensors",
    "flax_model.msgpack",
    "tf_model.h5",
    "rust_model.ot",
    ".gitattributes",
    "onnx/model.onnx",
    "../escaped.json",
    "original/config.json",
]
CARD = b"---\nlicense: cc-by-nc-4.0\n---\n"


def refused(*needles: str, error: type[ValueError] = CheckpointError, **how: Any) -> str:
    """The sentence with which finding ID fails."""
    with pytest.raises(error) as caught:
        locate(ID, **how)
    message = str(caught.value)
    assert message.startswith(f"{ID}: ") or error is ConfigError
    assert "\n" not in message
    for needle in needles:
        assert needle in message, message
    return message
