"""Prompts on a GPU: a token has the same bits however its prompt is cut, and whatever is read beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from reading import hidden_states

from adept_fast import Runtime, SamplingParams
from adept_fast.model import PREFILL_CHUNK, Segment

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU that this torch can use"
)

# As a Runtime takes them; the products of float32 have no kernels.
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16", "cache_dtype": "bfloat16"},
    "int8": {"weights": "int8"},
    "fp8": {"weights": "fp8"},
    "int4": {"weights": "int4"},
}
in_every_format = pytest.mark.parametrize("fmt", FORMATS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products wide enough for cuBLAS to choose among kernels by their number of rows."""
    config = small_config(
        hidden_size=512, num_attention_heads=8, intermediate_size=2048, max_position_embeddings=2048
    )
    path = tmp_path_factory.mktemp("prefill")
    write_huggingface(path, config, random_tensors(config, seed=3), demo_tokenizer())
    return path


def load(path: Path, fmt: str, **changed: Any) -> Runtime:
    given = {"max_batch_size": 3, "max_seq_len": 1600, **FORMATS[fmt], **changed}
    return Runtime.load(path, device="cuda", progress=False, **given)


def prompt_of(length: int, first: int = 0) -> list[int]:
    return [5 + (7 * at + first) % 4000 for at in range(length)]


@torch.inference_mode()
def states(runtime: Runtime, ids: list[int], chunk_tokens: int) -> torch.Tensor:
    """float32 [tokens, hidden], after memory that a prompt does not write was filled with NaNs."""
    runtime.engine.runner.cache.data.fill_(float("nan"))
    return hidden_states(runtime.engine.runner.model, runtime.engine.runner.cache, ids, chunk_tokens)


@in_every_format
def test_chunks_of_a_prompt_change_no_bit(checkpoint: Path, fmt: str) -> None:
    runtime, ids = load(checkpoint, fmt), prompt_of(1200)
    whole = states(runtime, ids, PREFILL_CHUNK)
    assert torch.isfinite(whole).all()
    for chunk_tokens in (1, 7, 16, 17, 63, 64, 100, 129, 300, 511):
        short = ids[: 40 if chunk_tokens < 7 else 1200]
        assert torch.equal(states(runtime, short, chunk_tokens), whole[: len(short)]), chunk_tokens


@in_every_format
@torch.inference_mode()
def test_company_in_a_chunk_changes_no_bit(checkpoint: Path, fmt: str) -> None:
    runtime = load(checkpoint, fmt)
    model, cache = runtime.engine.runner.model, runtime.engine.runner.cache
    ids = {0: prompt_of(300), 1: prompt_of(1, first=9), 2: prompt_of(211, first=40)}
    alone = {slot: states(runtime, tokens, PREFILL_CHUNK) for slot, tokens in ids.items()}
    cache.data.fill_(float("nan"))
    together = model.prefill_chunk([Segment(slot, 0, tokens) for slot, tokens in ids.items()], cache)
    for found, slot in zip(together.split([300, 1, 211]), ids, strict=True):
        assert torch.equal(found, alone[slot]), slot
    rows = model.all_logits(together)
    assert torch.equal(model.all_logits(together[300:301]), rows[300:301])
    assert torch.equal(model.all_logits(together[:64]), rows[:64])


@in_every_format
def test_texts_and_scores_are_what_they_are_alone(checkpoint: Path, fmt: str) -> None:
    runtime = load(checkpoint, fmt)
    prompts = [prompt_of(length, first=length) for length in (1, 17, 200, 513, 700)]
    params = SamplingParams(max_new_tokens=1, logprobs=2, ignore_eos=True)
    together = runtime.generate(prompts, params)
    scores = runtime.score(prompts)
    for prompt, generation, score in zip(prompts, together, scores, strict=True):
        (alone,) = runtime.generate([prompt], params)
        assert generation.token_ids == alone.token_ids
        assert generation.logprobs == alone.logprobs
        assert score.logprobs == runtime.score([prompt])[0].logprobs


@pytest.mark.parametrize("fmt", ["float16", "int4"])
@torch.inference_mode()
def test_decode_steps_have_the_bits_of_an_exact_prefill(checkpoint: Path, fmt: str) -> None:
    runtime, ids = load(checkpoint, fmt, exact_prefill=True), prompt_of(60)
    model, cache = runtime.engine.runner.model, runtime.engine.runner.cache
    expected = model.logits(states(runtime, ids, PREFILL_CHUNK))
    slot = torch.zeros(1, dtype=torch.int64, device="cuda")
    for position, token_id in enumerate(ids):
        step = model.decode_step(torch.tensor([token_id], device="cuda"), slot, slot + position, cache, 60)
        assert torch.equal(step[0], expected[position]), position
