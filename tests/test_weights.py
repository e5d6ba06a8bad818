"""Loading weights: one tensor at a time, in the dtypes that were asked for."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface

from adept_fast import CheckpointError, PersimmonConfig
from adept_fast.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon
from adept_fast.weights import ModelWeights, load_weights, weights_bytes

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
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def counted(stored: StoredTensor) -> StoredTensor:
        def read() -> torch.Tensor:
            nonlocal most
            tensor = stored.read().clone()
            alive.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in alive))
            return tensor

        return replace(stored, read=read)

    watched = replace(checkpoint, tensors={n: counted(t) for n, t in checkpoint.tensors.items()})
    load_weights(watched, dtype=torch.float32, device=CPU)
    # The embedding stays in its stored dtype, so that one is kept as it is.
    assert most <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matrices_take_the_dtype_and_vectors_float32(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    weights = load_weights(checkpoint, dtype=dtype, device=CPU)
    for tensor in all_tensors(weights)[1:]:
        assert tensor.dtype == (torch.float32 if tensor.ndim == 1 else dtype)
    assert weights.embedding.dtype.itemsize == 2
    assert sum(tensor.nbytes for tensor in all_tensors(weights)) == weights_bytes(checkpoint, dtype)


def test_a_matrix_that_needs_no_conversion_stays_in_the_file(checkpoint: Checkpoint) -> None:
    weights = load_weights(checkpoint, dtype=torch.float16, device=CPU)
    stored = checkpoint.tensors["model.layers.1.mlp.dense_h_to_4h.weight"].read()
    assert weights.layers[1].w_up.data_ptr() == stored.data_ptr()


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
    assert sum(t.nbytes for t in all_tensors(weights)[:-1]) == weights_bytes(checkpoint, torch.float32)


def test_a_weight_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config)
    tensors["model.layers.1.self_attn.dense.weight"][3, 5] = 70_000.0
    write_huggingface(tmp_path, config, tensors, demo_tokenizer())
    checkpoint = open_checkpoint(tmp_path)
    load_weights(checkpoint, dtype=torch.bfloat16, device=CPU)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.dense\.weight has .* in float16"):
        load_weights(checkpoint, dtype=torch.float16, device=CPU)


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
