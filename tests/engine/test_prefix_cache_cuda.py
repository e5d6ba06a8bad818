"""The prefix cache on a GPU: no bit of a result depends on it, in either order of additions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from conversations import cached_tokens_of_random_conversations

from adept_fast import Runtime

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU that this torch can use"
)

FORMATS: dict[str, dict[str, Any]] = {
    "float16": {"dtype": "float16"},
    "float16, one order": {"dtype": "float16", "exact_prefill": True},
    "float16, no graphs": {"dtype": "float16", "cuda_graphs": "off"},
    "int8": {"weights": "int8"},
    "fp8": {"weights": "fp8"},
    "int4": {"weights": "int4"},
}


@pytest.mark.parametrize("fmt", FORMATS)
def test_random_conversations_have_the_bits_of_a_cold_start(tmp_path: Path, fmt: str) -> None:
    config = small_config(
        hidden_size=512, num_attention_heads=8, intermediate_size=2048, max_position_embeddings=512
    )
    write_huggingface(tmp_path, config, random_tensors(config, seed=3), demo_tokenizer())
    settings = {"device": "cuda", "max_batch_size": 3, "progress": False, **FORMATS[fmt]}
    cold = Runtime.load(tmp_path, prefix_cache=False, **settings)
    warm = Runtime.load(tmp_path, step_tokens=24, **settings)
    assert warm.engine.runner.model.has_one_order == FORMATS[fmt].get("exact_prefill", False)
    beginnings = [[base + 7 * at % 90 for at in range(150)] for base in (100, 300)]
    assert cached_tokens_of_random_conversations(cold, warm, beginnings) > 500
