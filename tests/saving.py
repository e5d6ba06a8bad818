"""What the tests of writing checkpoints share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface

from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.config import PersimmonConfig


def checkpoint_of(
    folder: Path, config: PersimmonConfig | None = None, dtype: torch.dtype = torch.float16, **more: Any
) -> Checkpoint:
    """A checkpoint of random weights with the shipped tokenizer, written to ``folder`` and opened."""
    config = config or small_config()
    return open_checkpoint(
        write_huggingface(folder, config, random_tensors(config, dtype=dtype), demo_tokenizer(), **more)
    )


def assert_same_weights(found: Checkpoint, expected: Checkpoint) -> None:
    assert list(found.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype, name
        assert torch.equal(found.tensors[name].read(), tensor.read()), name


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    """The two have the same weights bit for bit, the same config and the same tokenizer."""
    assert_same_weights(found, expected)
    assert found.config == expected.config
    assert found.tokenizer.model == expected.tokenizer.model
