"""A decode step in one native call: against its operators bit by bit, and against the reference operators."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import CPU, FLOATS, Backend, in_formats, on, same_bits, threads
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from torch import Tensor

from adept_fast import Runtime, ops
from adept_fast.checkpoint import open_checkpoint
from adept_fast.config import PersimmonConfig
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon
from adept_fast.ops import reference
from adept_fast.quantization.formats import FORMATS
from adept_fast.weights import load_weights

CAPACITY = 96
STEPS = 64
PACKED_AS = {"int8": ("float32", FORMATS["int8"]), "int4": ("float32", FORMATS["int4-g32"])}  # dtype, weights

# Sizes that are no multiples of a vector, of a tile or of a group.
ODD = {"hidden_size": 108, "num_attention_heads": 3, "intermediate_size": 203, "num_hidden_layers": 3}
MODELS: dict[str, dict[str, Any]] = {
    "odd sizes": ODD,
    "no qk_layernorm, tied": {**ODD, "qk_layernorm": False, "tie_word_embeddings": True},
}

every_format = pytest.mark.parametrize("fmt", [*FLOATS, "int8", "int4"])
every_model = pytest.mark.parametrize("model", MODELS)


@dataclass
class Loaded:
    model: Persimmon
    config: PersimmonConfig

    def cache(self, slots: int = 16, dtype: torch.dtype = torch.float16) -> StaticKVCache:
        """One with random keys and values, as many sequences would have left it."""
        cache = StaticKVCache(self.config, max_batch_size=slots, max_seq_len=CAPACITY, dtype=dtype)
        cache.data.copy_(torch.randn(cache.data.shape))
        return cache


Load = Callable[[str, str], Loaded]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads one of MODELS in one of the formats, once."""
    known: dict[tuple[str, str], Loaded] = {}
    paths: dict[str, Path] = {}

    def load(name: str, fmt: str) -> Loaded:
        if name not in paths:
            config = small_config(vocab_size=4096, **MODELS[name])
            paths[name] = tmp_path_factory.mktemp("checkpoint")
            write_huggingface(paths[name], config, random_tensors(config, seed=7), demo_tokenizer())
        if (name, fmt) not in known:
            dtype, packed = PACKED_AS.get(fmt, (fmt, None))
            checkpoint = open_checkpoint(paths[name])
            weights = load_weights(
                checkpoint, dtype=getattr(torch, dtype), device=torch.device("cpu"), weights=packed
            )
            model = Persimmon(checkpoint.config, weights, max_seq_len=CAPACITY, vocab_size=4001)
            known[name, fmt] = Loaded(model, checkpoint.config)
        return known[name, fmt]

    return load


@pytest.fixture
def by_reference(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """A decode step by the operators in plain PyTorch."""

    def step(model: Persimmon, *arguments: Any) -> Tensor:
        with monkeypatch.context() as patch, torch.inference_mode():
            for name in (
                "layernorm_qkv",
                "rotary_append",
                "decode_attention",
                "linear_residual",
                "mlp",
                "lm_head",
            ):
                patch.setattr(ops, name, getattr(reference, name))
            return model.decode_step_by_operators(*arguments)

    return step


def batch(tokens: int, slots: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """ids, slots and positions."""
    return (
        torch.randint(0, 4096, (tokens,)),
        torch.randperm(slots)[:tokens],
        torch.randint(0, CAPACITY, (tokens,)),
    )


def step(model: Persimmon, cache: StaticKVCache, at: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    assert model._cpu_step is not None
    with torch.inference_mode():
        return model.decode_step(*at, cache, CAPACITY)


def copy_of(loaded: Loaded, cache: StaticKVCache) -> StaticKVCache:
    copied = StaticKVCache(
        loaded.config, max_batch_size=cache.max_batch_size, max_seq_len=CAPACITY, dtype=cache.data.dtype
    )
    copied.data.copy_(cache.data)
    return copied


@in_formats(CPU)
@every_model
def test_it_is_its_operators_bit_for_bit(load: Load, model: str, backend: Backend, fmt: str) -> None:
    loaded = load(model, fmt)
    cache = loaded.cache()
    other = copy_of(loaded, cache)
    for tokens in range(1, 17) if backend is CPU[0] else (1, 4, 7, 16):
        at = batch(tokens)
        with torch.inference_mode():
            loaded.model.neuron_counts.zero_()
            whole = step(loaded.model, cache, at)
            counted = loaded.model.neuron_counts.tolist()
            operators = loaded.model.decode_step_by_operators(*at, other, CAPACITY)
        assert whole.shape == (tokens, 4001)
        assert torch.equal(whole, operators), tokens
        assert same_bits(cache.data, other.data), tokens
        assert loaded.model.neuron_counts.tolist() == [2 * number for number in counted]
        assert counted[1] == 3 * 203
        assert 0 < counted[0] < counted[1] + (tokens > 1)  # of many tokens some needs each


@in_formats(CPU, ("float32", "int4"))
def test_tokens_whose_slot_is_minus_1_are_left_out(load: Load, backend: Backend, fmt: str) -> None:
    """Their logits are 0; the others are as in a step without them, bit by bit, and so are the units read."""
    loaded = load("odd sizes", fmt)
    cache = loaded.cache()
    for present in ([1], [0, 3], [4], [0, 1, 2, 4], []):
        ids, slots, positions = batch(5)
        absent = [token for token in range(5) if token not in present]
        slots[absent], ids[absent], positions[absent] = -1, 2**40, CAPACITY
        alone, together = copy_of(loaded, cache), copy_of(loaded, cache)
        counts = []
        for written, tokens in ((alone, present), (together, list(range(5)))):
            loaded.model.neuron_counts.zero_()
            logits = step(loaded.model, written, (ids[tokens], slots[tokens], positions[tokens]))
            counts.append(loaded.model.neuron_counts.tolist())
            if written is alone:
                expected = logits
        assert torch.equal(logits[present], expected)
        assert not logits[absent].any()
        assert same_bits(together.data, alone.data)
        assert counts[0][0] == counts[1][0]


@pytest.mark.parametrize("fmt", ["float32", "float16"])
def test_its_operators_leave_them_out_too(load: Load, by_reference: Callable[..., Tensor], fmt: str) -> None:
    loaded = load("odd sizes", fmt)
    cache = loaded.cache(dtype=torch.float32)
    ids, slots, positions = batch(5)
    slots[1] = slots[4] = -1
    positions[1], positions[4] = CAPACITY, -3
    present = [0, 2, 3]
    expected = step(loaded.model, copy_of(loaded, cache), (ids[present], slots[present], positions[present]))
    for by in (loaded.model.decode_step_by_operators, lambda *at: by_reference(loaded.model, *at)):
        written = copy_of(loaded, cache)
        with torch.inference_mode():
            found = by(ids, slots, positions, written, CAPACITY)
        torch.testing.assert_close(found[present], expected, atol=2e-4, rtol=0)
        changed = (written.data != cache.data).any((0, 1, 3, 5))  # [slots, positions]
        assert sorted(changed.nonzero().tolist()) == sorted(
            [int(slots[token]), int(positions[token])] for token in present
        )


@pytest.mark.parametrize("cache_dtype", list(FLOATS))
@every_format
@every_model
def test_it_is_the_reference(
    load: Load, by_reference: Callable[..., Tensor], model: str, fmt: str, cache_dtype: str
) -> None:
    loaded = load(model, fmt)
    cache = loaded.cache(dtype=FLOATS[cache_dtype])
    # A key that lies between two numbers of the cache may be rounded to either.
    off = {"float32": 2e-4, "float16": 5e-3, "bfloat16": 5e-2}[cache_dtype]
    packed_off = {"int8": 5e-3, "int4": 5e-3}.get(fmt, 0.0)
    for tokens in (1, 5, 16):
        at, theirs = batch(tokens), copy_of(loaded, cache)
        expected = by_reference(loaded.model, *at, theirs, CAPACITY)
        assert expected.std() > 0.5
        for backend in CPU:
            written = copy_of(loaded, cache)
            with backend.running():
                ours = step(loaded.model, written, at)
            torch.testing.assert_close(ours, expected, atol=off + packed_off, rtol=0)
            torch.testing.assert_close(written.data, theirs.data, atol=off + packed_off, rtol=2e-2)


def greedy(step: Callable[..., Tensor], loaded: Loaded, first: Tensor) -> Tensor:
    """The likeliest tokens of STEPS steps from an empty cache, poisoned: int64 [tokens, STEPS]."""
    cache = loaded.cache(len(first), torch.float32)
    cache.data.fill_(float("nan"))
    slots, ids, found = torch.arange(len(first)), first, []
    for position in range(STEPS):
        logits = step(loaded.model, ids, slots, torch.full_like(ids, position), cache, position + 1)
        ids = logits.argmax(-1)
        found.append(ids)
    return torch.stack(found, 1)


@torch.inference_mode()
def by_native(model: Persimmon, *arguments: Any) -> Tensor:
    assert model._cpu_step is not None
    return model.decode_step(*arguments)


@on(CPU)
@every_model
def test_64_greedy_tokens(
    load: Load, by_reference: Callable[..., Tensor], model: str, backend: Backend
) -> None:
    loaded, first = load(model, "float32"), torch.tensor([5, 900, 17])
    ours = greedy(by_native, loaded, first)
    assert torch.equal(ours, greedy(by_reference, loaded, first))
    assert len(ours.unique()) > 20


@on(CPU[:1])
def test_64_greedy_tokens_of_the_demo(by_reference: Callable[..., Tensor], backend: Backend) -> None:
    runtime = Runtime.load("demo", dtype="float32", cache_dtype="float32", progress=False)
    loaded, first = Loaded(runtime.engine.runner.model, runtime.config), torch.tensor([1, 300])
    ours = greedy(by_native, loaded, first)
    assert torch.equal(ours, greedy(by_reference, loaded, first))


@every_format
def test_threads_change_no_bit(load: Load, fmt: str) -> None:
    """Nor do more threads than there are cores."""
    loaded = load("odd sizes", fmt)
    cache = loaded.cache()
    for tokens in (1, 7, 16):
        at = batch(tokens)
        results, caches = [], []
        for count in (1, 2, 5, (os.cpu_count() or 1) + 3):
            written = copy_of(loaded, cache)
            with threads(count):
                results.append(step(loaded.model, written, at))
            caches.append(written.data)
        assert all(torch.equal(results[0], other) for other in results)
        assert all(same_bits(caches[0], other) for other in caches)


@every_format
@every_model
def test_instruction_sets_agree(load: Load, model: str, fmt: str) -> None:
    loaded = load(model, fmt)
    cache = loaded.cache(dtype=torch.float32)
    at, results = batch(6), []
    for backend in CPU:
        with backend.running():
            results.append(step(loaded.model, copy_of(loaded, cache), at))
    for other in results[1:]:
        # Beside packed weights, an input near the middle of two steps may be rounded to either.
        torch.testing.assert_close(other, results[0], atol=5e-3 if fmt in ("int8", "int4") else 1e-4, rtol=0)


@every_format
def test_a_sequence_gets_what_it_gets_alone(load: Load, fmt: str) -> None:
    loaded = load("odd sizes", fmt)
    cache, at = loaded.cache(), batch(7)
    together = step(loaded.model, copy_of(loaded, cache), at)
    for token in range(7):
        alone = step(loaded.model, copy_of(loaded, cache), tuple(part[token : token + 1] for part in at))
        torch.testing.assert_close(alone[0], together[token], atol=2e-3, rtol=0)


def test_stats_count_the_steps_of_a_runtime() -> None:
    runtime = Runtime.load("demo", progress=False)
    assert (runtime.stats().unit_rows, runtime.stats().zero_share) == (0, 0.0)
    generation = runtime.generate("Once upon a time", max_new_tokens=9, ignore_eos=True)
    assert len(generation.token_ids) == 9
    rows = runtime.config.num_hidden_layers * runtime.config.intermediate_size
    stats = runtime.stats()
    assert stats.unit_rows == 8 * rows  # the first token comes from the prompt
    assert 0 < stats.unit_rows_read < stats.unit_rows
    assert stats.zero_share == 1 - stats.unit_rows_read / stats.unit_rows
    runtime.score("A text that is scored is read as a prompt is.")
    assert runtime.stats() == stats
