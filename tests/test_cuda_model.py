"""The model on a GPU: what it says is what it says on a CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from company import random_request
from reading import hidden_states

from adept_fast import Runtime, SamplingParams
from adept_fast.chat.format import chat_prompt

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU that this torch can use"
)

ON_A_GPU = "cuda"
PROMPTS = [
    chat_prompt("What is the capital of France?"),
    chat_prompt("Recite Humpty Dumpty."),
    chat_prompt("What is 3 plus 4?"),
    "a",
]
# Shapes that the kernels have to treat apart.
FAMILY: dict[str, dict[str, Any]] = {
    "as the 8B": {"hidden_size": 128, "num_attention_heads": 2},
    "head_dim 80": {"hidden_size": 160, "num_attention_heads": 2},
    "head_dim 96, no qk_layernorm": {
        "hidden_size": 192,
        "num_attention_heads": 2,
        "qk_layernorm": False,
        "partial_rotary_factor": 0.25,
    },
    "head_dim 128, tied": {
        "hidden_size": 128,
        "num_attention_heads": 1,
        "tie_word_embeddings": True,
        "partial_rotary_factor": 1.0,
    },
    "odd MLP": {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 1000},
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_demo_says_the_same(dtype: str) -> None:
    def texts(device: str) -> list[str]:
        runtime = Runtime.load(
            "demo", device=device, dtype=dtype, cache_dtype=dtype, max_batch_size=len(PROMPTS), progress=False
        )
        alone = [runtime.generate(prompt, max_new_tokens=32).text for prompt in PROMPTS]
        together = runtime.generate(PROMPTS, SamplingParams(max_new_tokens=32))
        assert [generation.text for generation in together] == alone
        return alone

    assert texts(ON_A_GPU) == texts("cpu")


@pytest.mark.parametrize("shape", FAMILY)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_decode_step_gives_the_same_logits(shape: str, dtype: str, tmp_path: Path) -> None:
    config = small_config(**{"vocab_size": 4096, "max_position_embeddings": 128, **FAMILY[shape]})
    write_huggingface(tmp_path, config, random_tensors(config, seed=7), demo_tokenizer())
    exact = decoded(tmp_path, "cpu", "float32")
    off = (decoded(tmp_path, ON_A_GPU, dtype) - exact).abs().max() / exact.abs().max()
    assert off <= (1e-5 if dtype == "float32" else 8 * torch.finfo(getattr(torch, dtype)).eps)


@pytest.mark.parametrize("shape", FAMILY)
@pytest.mark.parametrize("weights", ["fp8", "int4"])
def test_a_decode_step_of_packed_weights(shape: str, weights: str, tmp_path: Path) -> None:
    """A prompt goes through torch's GEMM, a step through the kernels: of the same weights."""
    config = small_config(**{"vocab_size": 4096, "max_position_embeddings": 128, **FAMILY[shape]})
    write_huggingface(tmp_path, config, random_tensors(config, seed=7), demo_tokenizer())
    runtime = Runtime.load(
        tmp_path, device=ON_A_GPU, dtype="float16", weights=weights, max_batch_size=1, progress=False
    )
    ids = torch.randint(2, 4096, (40,), generator=torch.Generator().manual_seed(0)).to(ON_A_GPU)
    model, cache, slot = (
        runtime.engine.runner.model,
        runtime.engine.runner.cache,
        torch.tensor([0], device=ON_A_GPU),
    )
    with torch.inference_mode():
        by_gemm = model.logits(hidden_states(model, cache, ids.tolist()))
        cache.data.zero_()
        steps = [model.decode_step(ids[i : i + 1], slot, slot + i, cache, i + 1) for i in range(40)]
    off = (torch.cat(steps) - by_gemm).abs().max() / by_gemm.abs().max()
    assert off <= 8 * torch.finfo(torch.float16).eps


STEP_KINDS = ("layers", "one")  # of matrices in tiles
FORMS: dict[str, dict[str, Any]] = {
    "float16": {
        "dtype": "float16",
        "exact_prefill": True,
    },  # a GEMM takes floats of each layout in another way
    "bfloat16": {"dtype": "bfloat16", "cache_dtype": "bfloat16", "exact_prefill": True},
    **{name: {"dtype": "float16", "weights": name} for name in ("int8", "fp8", "int4", "int4-g32")},
}


@pytest.mark.parametrize("shape", FAMILY)
@pytest.mark.parametrize("fmt", FORMS)
def test_steps_in_tiles_have_the_bits_of_rows(
    shape: str, fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(**{"vocab_size": 4096, "max_position_embeddings": 128, **FAMILY[shape]})
    write_huggingface(tmp_path, config, random_tensors(config, seed=7), demo_tokenizer())

    def logits(**layout: str) -> torch.Tensor:
        return decoded(tmp_path, ON_A_GPU, **FORMS[fmt], **layout)

    by_rows = logits(weight_layout="row_major")
    for kind in STEP_KINDS:
        monkeypatch.setenv("ADEPT_FAST_STEP", kind)
        assert torch.equal(logits(weight_layout="tiles"), by_rows), kind


@pytest.mark.parametrize("fmt", FORMS)
def test_texts_of_tiles_are_those_of_rows(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In graphs, alone and in company, with guesses: several tokens of a slot in a step."""
    draw = random.Random(fmt)
    requests = [random_request(draw, 4096) for _ in range(20)]
    prompts, params = [ids for ids, _ in requests], [settings for _, settings in requests]
    assert any(settings.prompt_lookup for settings in params)

    def texts(layout: str, slots: int) -> list[Any]:
        runtime = Runtime.load(
            "demo",
            device=ON_A_GPU,
            weight_layout=layout,
            cuda_graphs="required",
            max_seq_len=300,
            max_batch_size=slots,
            progress=False,
            **FORMS[fmt],
        )
        assert runtime.placement.layout == layout
        return [(one.token_ids, one.logprobs) for one in runtime.generate(prompts, params)]

    by_rows = texts("row_major", 8)
    for kind in STEP_KINDS:
        monkeypatch.setenv("ADEPT_FAST_STEP", kind)
        for slots in (1, 8):
            assert texts("tiles", slots) == by_rows, (kind, slots)


@torch.inference_mode()
def decoded(path: Path, device: str, dtype: str, cache_dtype: str | None = None, **more: Any) -> torch.Tensor:
    """The logits of each of 40 steps, of two sequences at once."""
    runtime = Runtime.load(
        path,
        device=device,
        dtype=dtype,
        cache_dtype=cache_dtype or dtype,
        max_batch_size=3,
        progress=False,
        **more,
    )
    ids = torch.randint(2, 4096, (40, 2), generator=torch.Generator().manual_seed(0)).to(device)
    slots, first = torch.tensor([2, 0], device=device), torch.tensor([0, 5], device=device)
    model, cache = runtime.engine.runner.model, runtime.engine.runner.cache
    cache.data.zero_()  # the second sequence begins behind five positions, which count
    logits = [model.decode_step(ids[step], slots, first + step, cache, step + 6) for step in range(40)]
    return torch.stack(logits).double().cpu()
