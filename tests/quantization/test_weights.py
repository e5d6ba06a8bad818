"""Loading weights: one tensor at a time, in the dtypes that were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from mapped import file_of
from reading import hidden_states
from watched_checkpoint import Watched

from adept_fast import CheckpointError, PersimmonConfig
from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.engine.engine import Engine
from adept_fast.engine.model_runner import ModelRunner
from adept_fast.engine.scoring import ScoredSequence
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.footprint import footprint
from adept_fast.model import Persimmon
from adept_fast.weights import ModelWeights, load_weights, with_vocabulary

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    config = small_config()
    write_huggingface(tmp_path, config, random_tensors(config, dtype=torch.float16), demo_tokenizer())
    return open_checkpoint(tmp_path)


def all_tensors(weights: ModelWeights) -> list[torch.Tensor]:
    layers = [tensor for layer in weights.layers for tensor in vars(layer).values() if tensor is not None]
    return [weights.embedding, *layers, weights.final_gamma, weights.final_beta, weights.lm_head]


def test_no_stored_tensor_outlives_its_move(checkpoint: Checkpoint) -> None:
    watched = Watched(checkpoint)
    load_weights(watched.checkpoint, dtype=torch.float32, device=CPU)
    # The embedding stays in its stored dtype, so that one is kept as it is.
    assert watched.most <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matrices_take_the_dtype_and_vectors_float32(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    weights = load_weights(checkpoint, dtype=dtype, device=CPU)
    for tensor in all_tensors(weights)[1:]:
        assert tensor.dtype == (torch.float32 if tensor.ndim == 1 else dtype)
    assert weights.embedding.dtype.itemsize == 2
    assert sum(tensor.nbytes for tensor in all_tensors(weights)) == footprint(checkpoint, dtype).total_bytes


def test_a_matrix_that_needs_no_conversion_stays_in_the_file(checkpoint: Checkpoint) -> None:
    weights = load_weights(checkpoint, dtype=torch.float16, device=CPU)
    assert file_of(weights.layers[1].w_up) == str(checkpoint.path / "model.safetensors")


def test_the_down_projection_is_transposed(checkpoint: Checkpoint) -> None:
    weights = load_weights(checkpoint, dtype=torch.float16, device=CPU)
    stored = checkpoint.tensors["model.layers.0.mlp.dense_4h_to_h.weight"].read()
    assert torch.equal(weights.layers[0].w_down_t, stored.t())
    assert weights.layers[0].w_down_t.is_contiguous()


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=True)
    write_huggingface(tmp_path, config, random_tensors(config, dtype=torch.float16), demo_tokenizer())
    checkpoint = open_checkpoint(tmp_path)
    weights = load_weights(checkpoint, dtype=torch.float32, device=CPU)
    assert weights.embedding is weights.lm_head
    assert (
        sum(t.nbytes for t in all_tensors(weights)[:-1]) == footprint(checkpoint, torch.float32).total_bytes
    )


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_rows_in_use_are_held(tmp_path: Path, tied: bool) -> None:
    config = small_config(tie_word_embeddings=tied)
    write_huggingface(tmp_path, config, random_tensors(config, dtype=torch.float16), demo_tokenizer())
    checkpoint = open_checkpoint(tmp_path)
    whole = load_weights(checkpoint, dtype=torch.float16, device=CPU)
    some = load_weights(checkpoint, dtype=torch.float16, device=CPU, vocab_rows=4096)
    assert torch.equal(some.embedding, whole.embedding[:4096])
    assert torch.equal(some.lm_head, whole.lm_head[:4096])
    assert (some.embedding is some.lm_head) == tied
    held = [tensor.nbytes for tensor in all_tensors(some)[: -1 if tied else None]]
    assert sum(held) == footprint(checkpoint, torch.float16, vocab_rows=4096).total_bytes
    saved = footprint(checkpoint, torch.float16).total_bytes - sum(held)
    assert saved == (1 if tied else 2) * (4160 - 4096) * 64 * 2
    assert with_vocabulary(checkpoint, 4160) is with_vocabulary(checkpoint, None) is checkpoint
    assert footprint(checkpoint, torch.float16, vocab_rows=4096).embedding_bytes == (
        0 if tied else 4096 * 64 * 2
    )


def test_rows_that_are_not_held_are_not_looked_at(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config, dtype=torch.float16)
    tensors["lm_head.weight"][4100, 3] = tensors["model.embed_tokens.weight"][4159, 0] = float("nan")
    write_huggingface(tmp_path, config, tensors, demo_tokenizer())
    checkpoint = open_checkpoint(tmp_path)
    load_weights(checkpoint, dtype=torch.float16, device=CPU, vocab_rows=4096)
    with pytest.raises(CheckpointError, match="embed_tokens.weight has a NaN"):
        load_weights(checkpoint, dtype=torch.float16, device=CPU, vocab_rows=4160)


def test_scores_are_among_the_rows_that_are_held(checkpoint: Checkpoint) -> None:
    """Larger by −log(1 − p), where p is what the rows that are not held would get."""
    ids = [at * 37 % 4096 for at in range(60)]
    config = checkpoint.config
    scores = []
    for rows in (None, 4096):
        weights = load_weights(checkpoint, dtype=torch.float32, device=CPU, vocab_rows=rows)
        model = Persimmon(config, weights, max_seq_len=64, vocab_size=4096)
        cache = StaticKVCache(config, max_batch_size=1, max_seq_len=64)
        engine = Engine(ModelRunner(model, cache, 4096), checkpoint.tokenizer)
        (scored,) = engine.score([ScoredSequence(ids[:1], [ids[1:]])])
        scores.append(torch.tensor(scored.likelihoods()[0].logprobs, dtype=torch.float64))
        with torch.inference_mode():
            hidden = hidden_states(model, cache, ids)[:-1]
            logits = model.all_logits(hidden).double()
        if rows is None:
            unused = logits.softmax(-1)[:, 4096:].sum(-1)
    assert logits.shape[1] == 4096
    assert unused.min() > 1e-4
    assert torch.allclose(scores[1] - scores[0], -(1 - unused).log(), atol=2e-5)


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_the_embedding_may_be_pinned_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype
) -> None:
    config = small_config()
    write_huggingface(tmp_path, config, random_tensors(config, dtype=stored), demo_tokenizer())
    checkpoint = open_checkpoint(tmp_path)
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    weights = load_weights(
        checkpoint,
        dtype=torch.float16,
        device=torch.device("meta"),
        vocab_rows=4096,
        embedding_on_host=True,
        check_finite=False,
    )
    assert len(pinned) == 1
    assert weights.embedding is pinned[0]
    expected = checkpoint.tensors["model.embed_tokens.weight"].read()[:4096].half()
    assert torch.equal(weights.embedding, expected)
    assert weights.device.type == "meta"
    assert {tensor.device.type for tensor in all_tensors(weights)[1:]} == {"meta"}


def test_the_table_of_a_tied_model_is_never_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tie_word_embeddings=True)
    write_huggingface(tmp_path, config, random_tensors(config, dtype=torch.float16), demo_tokenizer())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pytest.fail("pinned"))
    weights = load_weights(
        open_checkpoint(tmp_path),
        dtype=torch.float16,
        device=torch.device("meta"),
        embedding_on_host=True,
        check_finite=False,
    )
    assert weights.embedding is weights.lm_head
    assert weights.device.type == "meta"


def test_a_weight_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config)
    tensors["model.layers.1.self_attn.dense.weight"][3, 5] = 70_000.0
    write_huggingface(tmp_path, config, tensors, demo_tokenizer())
    checkpoint = open_checkpoint(tmp_path)
    load_weights(checkpoint, dtype=torch.bfloat16, device=CPU)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.dense\.weight has .* in float16"):
        load_weights(checkpoint, dtype=torch.float16, device=CPU)


@pytest.mark.slow
def test_sixteen_thousand_tokens_need_no_square_of_scores(tmp_path: Path) -> None:
    tokens = 16_384
    config = PersimmonConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=1,
        eos_token_id=1,
    )
    write_huggingface(tmp_path, config, random_tensors(config), demo_tokenizer())
    weights = load_weights(open_checkpoint(tmp_path), dtype=torch.float32, device=CPU)
    model = Persimmon(config, weights, max_seq_len=tokens, vocab_size=4096)
    cache = StaticKVCache(config, max_batch_size=1, max_seq_len=tokens)
    with (
        torch.inference_mode(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiled,
    ):
        logits = model.prefill(torch.arange(tokens) % 4000, cache, slot=0)
    assert logits.isfinite().all()
    largest = max(event.cpu_memory_usage for event in profiled.events())
    assert 0 < largest < 0.1 * tokens * tokens * 4
