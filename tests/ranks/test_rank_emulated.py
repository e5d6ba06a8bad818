"""The parts of ranks in a GPU's layouts, on the CUDA kernels that run on the emulator."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from emulated_runtimes import Recording, as_emulated_gpu
from rank_threads import on_ranks, tokens
from torch import Tensor

from adept_fast import weights as weights_module
from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.checkpoint.shares import Share, rank_checkpoint
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon, Segment
from adept_fast.ops.ranks import ONE_RANK, Ranks
from adept_fast.quantization.formats import FORMATS
from adept_fast.quantization.layouts import ROW_MAJOR, TILES

CONTEXT, SLOTS, IDS = 64, 3, [3, 4000, 17, 2048, 1029, 7, 3100, 999, 5]
CPU = torch.device("cpu")
_one_at_a_time = threading.Lock()  # the emulator runs one kernel at a time


@pytest.fixture(autouse=True)
def _kernels_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Recording.__getattr__

    def locked(self: Recording, name: str) -> Callable[..., Any]:
        operator = original(self, name)

        def run(*arguments: Any, **keywords: Any) -> Any:
            with _one_at_a_time:
                return operator(*arguments, **keywords)

        return run

    monkeypatch.setattr(Recording, "__getattr__", locked)


def model_of(checkpoint: Checkpoint, fmt: str, layout: str, ranks: Ranks) -> tuple[Persimmon, StaticKVCache]:
    packed = FORMATS.get(fmt)
    if ranks.count > 1:
        checkpoint = rank_checkpoint(checkpoint, Share(checkpoint.config, ranks.rank, ranks.count), packed)
    weights = weights_module.load_weights(
        checkpoint,
        dtype=torch.float16 if packed else getattr(torch, fmt),
        device=CPU,
        weights=packed,
        layout=layout,
        huge_pages=True,  # what stays in a file is not aligned
        agree=ranks.largest,
    )
    used = checkpoint.tokenizer.vocab_size
    model = Persimmon(checkpoint.config, weights, max_seq_len=CONTEXT, vocab_size=used, ranks=ranks)
    return model, StaticKVCache(checkpoint.config, max_batch_size=SLOTS, max_seq_len=CONTEXT)


def logits(model: Persimmon, cache: StaticKVCache) -> list[Tensor]:
    """Of a prompt, and of a token alone and in company."""
    hidden = model.prefill_chunk([Segment(1, 0, IDS)], cache)
    found = [model.logits(hidden[-1:])]
    model.prefill_chunk([Segment(0, 0, IDS[:3])], cache)
    at = len(IDS)
    found.append(model.decode_step(tokens([9]), tokens([1]), tokens([at]), cache, at + 1))
    found.append(
        model.decode_step(tokens([4, 9, 0]), tokens([0, 1, -1]), tokens([3, at, 0]), cache, at + 1)[1:2]
    )
    return found


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("layout", [ROW_MAJOR, TILES])
@pytest.mark.parametrize("fmt", ["float16", "int8", "fp8", "int4-g32", "int4-g128"])
def test_logits_are_those_of_one_rank(tmp_path: Path, fmt: str, layout: str, count: int) -> None:
    config = small_config(hidden_size=128, intermediate_size=256)
    path = write_huggingface(tmp_path, config, random_tensors(config, 5, torch.float16), demo_tokenizer())
    checkpoint = open_checkpoint(path)
    with as_emulated_gpu():
        with torch.inference_mode():
            one = logits(*model_of(checkpoint, fmt, layout, ONE_RANK))
        several = on_ranks(count, lambda ranks: logits(*model_of(checkpoint, fmt, layout, ranks)))[0]
    for found, expected in zip(several, one, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).norm() / expected.norm() < 3e-3  # inputs are rounded to float16
    alone, in_company = several[1:]
    assert torch.equal(alone, in_company)
