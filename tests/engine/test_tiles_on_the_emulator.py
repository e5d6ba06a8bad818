"""Texts of a model in tiles, by kernels that run on the emulator: they are those of the model row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from emulated_runtimes import as_emulated_gpu, load
from fake_graph import FakeCapture

from adept_fast import Runtime, SamplingParams
from adept_fast.checkpoint import open_checkpoint
from adept_fast.engine.engine import Engine
from adept_fast.engine.graphs import LaunchPolicy
from adept_fast.engine.model_runner import ModelRunner
from adept_fast.memory.graph_buckets import GraphBuckets
from adept_fast.memory.workspace import max_rows
from adept_fast.quantization.formats import FORMATS
from adept_fast.quantization.layouts import ROW_MAJOR, TILES

CONTEXT, SLOTS = 64, 3
PROMPTS = [[5, 6, 7, 8] * 5, [9], list(range(20, 37))]
PARAMS = [
    SamplingParams(max_new_tokens=6, ignore_eos=True, logprobs=2, prompt_lookup=3),
    SamplingParams(max_new_tokens=5, ignore_eos=True, logprobs=1, temperature=1.1, top_p=0.9, seed=3),
    SamplingParams(max_new_tokens=4, ignore_eos=True, logprobs=1, repetition_penalty=1.3),
]
# Formats with shapes that the kernels have to treat apart.
SHAPES: dict[str, dict[str, Any]] = {
    "float16": {"hidden_size": 128, "num_attention_heads": 2},
    "bfloat16": {"num_attention_heads": 2, "intermediate_size": 200, "qk_layernorm": False},
    "fp8": {"tie_word_embeddings": True},
    "int4-g32": {"hidden_size": 128, "num_attention_heads": 1},  # heads that the one kernel does not take
    "int4-g128": {"hidden_size": 136, "num_attention_heads": 1, "num_hidden_layers": 1},
}


def load_captured(path: Path, fmt: str, layout: str) -> Runtime:
    """With steps that are captured, as on a GPU."""
    exact = fmt not in FORMATS  # a GEMM takes floats of each layout in another way
    runtime = load(open_checkpoint(path), fmt, layout, slots=SLOTS, context=CONTEXT, exact_prefill=exact)
    rows, runner = max_rows(SLOTS), runtime.engine.runner
    policy = LaunchPolicy(GraphBuckets.few(rows, CONTEXT), 2, FakeCapture(), required=True)
    captured = ModelRunner(runner.model, runner.cache, runtime.tokenizer.vocab_size, policy)
    runtime.engine = Engine(captured, runtime.tokenizer)
    return runtime


def texts(runtime: Runtime) -> list[Any]:
    """Alone, and in company: tokens and log-probabilities."""
    alone = [runtime.generate([prompt], params)[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    return [
        (one.token_ids, one.logprobs, one.timings.accepted_tokens)
        for one in (*alone, *runtime.generate(PROMPTS, PARAMS))
    ]


@pytest.mark.parametrize("fmt", SHAPES)
def test_texts_are_those_of_rows(fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(**{"vocab_size": 4096, "max_position_embeddings": CONTEXT, **SHAPES[fmt]})
    write_huggingface(tmp_path, config, random_tensors(config, 5, torch.float16), demo_tokenizer())
    with as_emulated_gpu() as operators:
        by_rows = load_captured(tmp_path, fmt, ROW_MAJOR)
        expected = texts(by_rows)
        assert not operators.steps
        assert by_rows.stats().unit_rows_read > 0
        for kind in ("layers", "one"):
            monkeypatch.setenv("ADEPT_FAST_STEP", kind)
            operators.steps.clear()
            in_tiles = load_captured(tmp_path, fmt, TILES)
            assert texts(in_tiles) == expected, kind
            assert in_tiles.stats() == by_rows.stats()
            takes_one = kind == "one" and config.head_dim <= 64
            assert {one for one, tokens in operators.steps if tokens <= 8} == {takes_one}
            assert max(tokens for _, tokens in operators.steps) > 1
