"""The model against transformers' PersimmonForCausalLM, over the family of architectures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_adept, write_huggingface
from reading import hidden_states
from transformers import PersimmonForCausalLM

from adept_fast import PersimmonConfig, Runtime
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import PREFILL_CHUNK, Segment, chunks

NEW_TOKENS = 64
SAME = 1e-4  # of logits up to 20: the same numbers summed in another order

# head_dim 64, 80, 96, 128; rotary 0.25 to 1; with and without q/k LayerNorm; tied and untied; odd sizes.
FAMILY: dict[str, dict[str, Any]] = {
    "as the 8B": {"hidden_size": 128, "num_attention_heads": 2},
    "head_dim 80": {"hidden_size": 160, "num_attention_heads": 2},
    "head_dim 96": {"hidden_size": 192, "num_attention_heads": 2, "partial_rotary_factor": 0.25},
    "head_dim 128": {"hidden_size": 128, "num_attention_heads": 1, "partial_rotary_factor": 1.0},
    "head_dim 16": {"hidden_size": 64, "num_attention_heads": 4, "partial_rotary_factor": 0.75},
    "no qk_layernorm": {"hidden_size": 128, "num_attention_heads": 2, "qk_layernorm": False},
    "no qk_layernorm, head_dim 80": {
        "hidden_size": 240,
        "num_attention_heads": 3,
        "qk_layernorm": False,
        "partial_rotary_factor": 0.25,
    },
    "tied": {"hidden_size": 128, "num_attention_heads": 2, "tie_word_embeddings": True},
    "tied, no qk_layernorm": {
        "hidden_size": 96,
        "num_attention_heads": 1,
        "tie_word_embeddings": True,
        "qk_layernorm": False,
    },
    "theta 10000": {"hidden_size": 128, "num_attention_heads": 2, "rope_theta": 10000.0},
    "one layer, wide MLP": {
        "hidden_size": 64,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "intermediate_size": 1000,
    },
    "five layers, narrow MLP": {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 5,
        "intermediate_size": 65,
    },
    "coarse eps": {"hidden_size": 128, "num_attention_heads": 2, "layer_norm_eps": 1e-2},
}

PROMPTS = [
    "a",
    "",
    "human: What is the capital of France?\n\nadept:",
    "Once upon a time, in a land far away, there lived",
    "你好 🙂 naïve café",
    "   spaces   and\ttabs\n\n",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
    "def f(x):\n    return x + 1\n",
    *(f"Prompt number {number}: {'word ' * number}" for number in range(12)),
]


@dataclass
class Pair:
    """One checkpoint in both implementations, both in float32 throughout."""

    config: PersimmonConfig
    path: Path
    ours: Runtime
    theirs: PersimmonForCausalLM


def load_ours(path: Path, **options: Any) -> Runtime:
    return Runtime.load(path, device="cpu", dtype="float32", cache_dtype="float32", progress=False, **options)


@pytest.fixture(scope="module", params=list(FAMILY))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    settings = {"vocab_size": 4096, "max_position_embeddings": 192, **FAMILY[request.param]}
    config = small_config(**settings)
    path = tmp_path_factory.mktemp("checkpoint")
    write_huggingface(path, config, random_tensors(config, seed=7), demo_tokenizer())
    theirs = PersimmonForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return Pair(config, path, load_ours(path, max_batch_size=4), theirs)


@torch.inference_mode()
def logits_of(runtime: Runtime, ids: list[int], max_tokens: int = PREFILL_CHUNK) -> torch.Tensor:
    """float32 [tokens, vocab]."""
    runner = runtime.engine.runner
    return runner.model.all_logits(hidden_states(runner.model, runner.cache, ids, max_tokens))


@torch.inference_mode()
def their_logits(theirs: PersimmonForCausalLM, ids: list[int]) -> torch.Tensor:
    return theirs(input_ids=torch.tensor([ids])).logits[0]


def random_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(2, 4096, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_there_are_at_least_twelve_configurations_and_twenty_prompts() -> None:
    assert len(FAMILY) >= 12
    assert len(PROMPTS) >= 20


@pytest.mark.parametrize("tokens", [1, 2, 65, 192])
def test_logits(pair: Pair, tokens: int) -> None:
    ids = random_ids(tokens)
    expected = their_logits(pair.theirs, ids)
    assert expected.std() > 0.5  # logits all alike would prove nothing
    torch.testing.assert_close(logits_of(pair.ours, ids), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_greedy_text_is_identical(pair: Pair) -> None:
    """Every generated token is transformers' argmax after the same tokens, so both write the same text."""
    tokenizer = pair.ours.tokenizer
    generations = pair.ours.generate(PROMPTS, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        prompt_ids = tokenizer.encode(prompt) or [tokenizer.bos_id]
        assert len(generation.token_ids) == NEW_TOKENS
        greedy = their_logits(pair.theirs, [*prompt_ids, *generation.token_ids[:-1]]).argmax(-1)
        assert generation.token_ids == greedy[len(prompt_ids) - 1 :].tolist()


@pytest.mark.slow
def test_greedy_text_is_that_of_their_generate(pair: Pair) -> None:
    ids = pair.ours.tokenizer.encode(PROMPTS[2])
    theirs = pair.theirs.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    generation = pair.ours.generate(PROMPTS[2], max_new_tokens=NEW_TOKENS, ignore_eos=True)
    assert generation.token_ids == theirs


def test_scores_are_their_log_softmax(pair: Pair) -> None:
    texts = [prompt for prompt in PROMPTS if prompt]
    for text, score in zip(texts, pair.ours.score(texts, add_bos=True), strict=True):
        ids = pair.ours.tokenizer.encode(text, add_bos=True)
        logprobs = their_logits(pair.theirs, ids).log_softmax(-1)[:-1]
        expected = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert score.logprobs[0] is None
        torch.testing.assert_close(torch.tensor(score.logprobs[1:]), expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    config = small_config(hidden_size=160, num_attention_heads=2, max_position_embeddings=256)
    path = tmp_path_factory.mktemp("small")
    write_huggingface(path, config, random_tensors(config, seed=3), demo_tokenizer())
    return load_ours(path, max_batch_size=3)


@pytest.mark.parametrize("chunk", [1, 3, 64, 255])
def test_prefill_in_chunks_is_prefill_as_a_whole(small: Runtime, chunk: int) -> None:
    ids = random_ids(200)
    whole = logits_of(small, ids)
    torch.testing.assert_close(logits_of(small, ids, chunk), whole, atol=SAME, rtol=0)


@pytest.mark.parametrize("max_tokens", [1, 7, 64, 255, 512])
def test_segments_of_several_sequences_are_read_as_each_alone(small: Runtime, max_tokens: int) -> None:
    """Whatever chunk boundaries cut, and in whichever slots."""
    runner = small.engine.runner
    prompts = {2: random_ids(90, seed=1), 0: random_ids(3, seed=2), 1: random_ids(61, seed=3)}
    alone = {slot: logits_of(small, ids) for slot, ids in prompts.items()}
    found: dict[int, list[torch.Tensor]] = {slot: [] for slot in prompts}
    with torch.inference_mode():
        for chunk in chunks((Segment(slot, 0, ids) for slot, ids in prompts.items()), max_tokens):
            assert sum(len(segment.ids) for segment in chunk) <= max_tokens
            hidden = runner.model.prefill_chunk(chunk, runner.cache)
            for segment, own in zip(chunk, hidden.split([len(s.ids) for s in chunk]), strict=True):
                found[segment.slot].append(runner.model.all_logits(own))
    for slot, logits in found.items():
        torch.testing.assert_close(torch.cat(logits), alone[slot], atol=SAME, rtol=0)


@pytest.mark.parametrize("split", [1, 100, 199])
def test_prefill_goes_on_where_it_stopped(small: Runtime, split: int) -> None:
    ids = torch.tensor(random_ids(200))
    with torch.inference_mode():
        whole = small.engine.runner.model.prefill(ids, small.engine.runner.cache, 0)
        small.engine.runner.model.prefill(ids[:split], small.engine.runner.cache, 1)
        continued = small.engine.runner.model.prefill(ids[split:], small.engine.runner.cache, 1, start=split)
    torch.testing.assert_close(continued, whole, atol=SAME, rtol=0)


def test_decode_steps_give_what_prefill_gives(small: Runtime) -> None:
    ids = random_ids(40)
    expected = logits_of(small, ids)[:, : small.tokenizer.vocab_size]
    model, cache = small.engine.runner.model, small.engine.runner.cache
    with torch.inference_mode():
        for position, token_id in enumerate(ids):
            step = model.decode_step(
                torch.tensor([token_id]), torch.tensor([2]), torch.tensor([position]), cache, position + 1
            )
            torch.testing.assert_close(step[0], expected[position], atol=SAME, rtol=0)


@pytest.mark.parametrize("poison", [1e4, float("nan")])
@pytest.mark.parametrize("cache_dtype", ["float32", "float16"])
def test_what_stands_past_the_end_never_matters(small: Runtime, cache_dtype: str, poison: float) -> None:
    prompts = [random_ids(length, seed=length) for length in (1, 31, 32, 33, 90)]
    runtime = Runtime(
        small.engine.runner.model,
        small.tokenizer,
        StaticKVCache(small.config, max_batch_size=3, max_seq_len=256, dtype=getattr(torch, cache_dtype)),
        small.memory(),
        small.placement,
        0.0,
    )
    outcomes = []
    for filler in (0.0, poison):
        runtime.engine.runner.cache.data.fill_(filler)
        generations = runtime.generate(prompts, max_new_tokens=20, ignore_eos=True, logprobs=0)
        scores = runtime.score(prompts)
        outcomes.append([[g.token_ids, g.logprobs] for g in generations] + [s.logprobs for s in scores])
    assert outcomes[0] == outcomes[1]


def test_rows_above_the_tokenizer_do_not_change_the_text(tmp_path: Path) -> None:
    config = small_config(vocab_size=4160)
    tensors = random_tensors(config)
    tensors["lm_head.weight"][4096:] *= 3  # were they sampled, they would always win
    write_huggingface(tmp_path, config, tensors, demo_tokenizer())
    runtime = load_ours(tmp_path)
    theirs = PersimmonForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = random_ids(5)
    generation = runtime.generate([prompt], max_new_tokens=20, ignore_eos=True)[0]
    logits = their_logits(theirs, [*prompt, *generation.token_ids[:-1]])
    assert (logits.argmax(-1) >= 4096).any()
    assert generation.token_ids == logits[4:, :4096].argmax(-1).tolist()
    (score,) = runtime.score([prompt])
    expected = their_logits(theirs, prompt).log_softmax(-1)[range(4), prompt[1:]]
    torch.testing.assert_close(torch.tensor(score.logprobs[1:]), expected, atol=1e-4, rtol=0)


def test_every_loader_gives_the_same_model(tmp_path: Path) -> None:
    config = small_config(hidden_size=128, num_attention_heads=4)
    tensors = random_tensors(config, dtype=torch.float16)
    model = demo_tokenizer()
    paths = [
        write_huggingface(tmp_path / "one", config, tensors, model),
        write_huggingface(tmp_path / "shards", config, tensors, model, shards=3),
        write_adept(tmp_path / "adept", config, tensors, model),
        write_adept(tmp_path / "ranks", config, tensors, model, ranks=4),
        write_adept(tmp_path / "release.tar", config, tensors, model, ranks=2, tar=True),
    ]
    ids = random_ids(50)
    logits = [logits_of(load_ours(path), ids) for path in paths]
    theirs = PersimmonForCausalLM.from_pretrained(paths[0], dtype=torch.float32).eval()
    torch.testing.assert_close(logits[0], their_logits(theirs, ids), atol=1e-4, rtol=0)
    assert all(torch.equal(logits[0], other) for other in logits[1:])


@pytest.mark.parametrize(("dtype", "tokens"), [("float16", 70), ("float16", 5), ("bfloat16", 70)])
def test_half_precision_weights_lose_nothing_on_a_cpu(tmp_path: Path, dtype: str, tokens: int) -> None:
    """Widened at every use, or once at load: the same numbers up to float32's rounding."""
    exact = dtype == "bfloat16"  # else a processor that multiplies bfloat16 rounds the inputs of prompts
    config = small_config(hidden_size=192, num_attention_heads=2, intermediate_size=3000)
    tensors = random_tensors(config, dtype=getattr(torch, dtype))
    write_huggingface(tmp_path, config, tensors, demo_tokenizer())
    options: dict[str, Any] = {"device": "cpu", "cache_dtype": "float32", "progress": False}
    narrow = Runtime.load(tmp_path, dtype=dtype, exact_prefill=exact, **options)
    wide = Runtime.load(tmp_path, dtype="float32", **options)
    ids = random_ids(tokens)
    torch.testing.assert_close(logits_of(narrow, ids), logits_of(wide, ids), atol=SAME, rtol=0)
    assert narrow.memory().weights_bytes < 0.6 * wide.memory().weights_bytes


def test_a_long_prompt_in_bfloat16_errs_no_more_than_twice_as_much_as_transformers_does(
    tmp_path: Path,
) -> None:
    """Many tokens are multiplied in bfloat16 where the processor can."""
    config = small_config(hidden_size=192, num_attention_heads=2, intermediate_size=3000)
    write_huggingface(tmp_path, config, random_tensors(config, dtype=torch.bfloat16), demo_tokenizer())
    narrow = Runtime.load(tmp_path, device="cpu", dtype="bfloat16", cache_dtype="float32", progress=False)
    wide = Runtime.load(tmp_path, device="cpu", dtype="float32", cache_dtype="float32", progress=False)
    ids = random_ids(70)
    theirs = PersimmonForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    exact = logits_of(wide, ids)
    error = (logits_of(narrow, ids) - exact).square().mean().sqrt()
    their_error = (their_logits(theirs, ids).float() - exact).square().mean().sqrt()
    assert error <= 2 * their_error
