"""Working memory stays within what is planned: measured on a CPU, and of the emulated CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import EMULATED, THIN
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface

from adept_fast import PersimmonConfig, Runtime
from adept_fast.extension import Extension
from adept_fast.memory import workspace
from adept_fast.memory.workspace import CUDA_ALLOWANCE_BYTES, ROW_ALLOWANCE_BYTES, Workspace, max_rows
from adept_fast.ops import reference
from adept_fast.sampling import Sampler

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def most_allocated(run: Callable[[], Any]) -> int:
    """How many bytes torch held at once on the CPU, beside what it held before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        torch.inference_mode(),
        torch.profiler.profile(activities=activities, profile_memory=True) as profiled,
    ):
        run()
    recorded = profiled.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), at, event.nbytes())
        for at, event in enumerate(recorded)
        if event.name() == "[memory]"
    )
    held = most = 0
    for _, _, change in changes:
        held += change
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    "changes",
    [{"vocab_size": 20_000}, {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 4096}],
    ids=["wide vocabulary", "wide layers"],
)
def test_prompts_scores_and_steps_stay_within_it_on_a_cpu(tmp_path: Path, changes: dict[str, int]) -> None:
    config = small_config(**{"max_position_embeddings": 1024} | changes)
    write_huggingface(tmp_path, config, random_tensors(config, dtype=torch.float16), demo_tokenizer())
    runtime = Runtime.load(tmp_path, device="cpu", progress=False, max_batch_size=3)
    prompt = [at % 4000 for at in range(1000)]
    space = Workspace(config, CPU, config.vocab_size)
    taken = {
        "score": most_allocated(lambda: runtime.score([prompt])),
        "prefill": most_allocated(lambda: runtime.generate([prompt], max_new_tokens=1)),
    }
    planned = space.prompt_bytes(runtime.max_seq_len)
    assert 0.1 * planned < max(taken.values()) <= planned, taken
    drawn = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 1, "ignore_eos": True}
    guessed = most_allocated(lambda: runtime.generate([prompt[:8] * 4], prompt_lookup=15, **drawn))
    batched = most_allocated(lambda: runtime.generate([prompt[:8]] * 3, max_new_tokens=5, **drawn))
    penalties = {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.5}
    biased = drawn | penalties | {"max_new_tokens": 5, "logit_bias": {7: 1.0}}
    penalised = most_allocated(lambda: runtime.generate([prompt[:8]] * 3, **biased))
    assert max(guessed, batched) <= space.step_bytes(max_rows(3), runtime.max_seq_len)
    assert penalised <= space.step_bytes(3, runtime.max_seq_len)
    assert runtime.memory().workspace_bytes >= max(planned, guessed, batched, penalised)


@pytest.mark.parametrize("tokens", [1, 2] if THIN else [1, 2, 9, 16])
def test_the_kernels_workspaces_stay_within_it(tokens: int) -> None:
    """A step's kernels one after the other, as if nothing were given back between them."""
    kernels = EMULATED.operators
    config = PersimmonConfig(
        hidden_size=128, intermediate_size=512, num_attention_heads=2, num_hidden_layers=1, vocab_size=5000
    )
    hidden, intermediate, vocab, length, slots = 128, 512, 5000, 700, 16

    def halves(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).half() / 16

    x, gamma, beta = torch.randn(tokens, hidden), torch.ones(hidden), torch.zeros(hidden)
    cache = halves(2, slots, 2, length, 64)
    cos, sin = reference.rotary_table(32, 10000.0, length, CPU)
    at = torch.arange(tokens)
    matrices = {
        "qkv": halves(3 * hidden, hidden),
        "dense": halves(hidden, hidden),
        "up": halves(intermediate, hidden),
        "down_t": halves(intermediate, hidden),
        "lm_head": halves(vocab, hidden),
    }
    biases = {name: torch.zeros(len(matrix)) for name, matrix in matrices.items()}
    settings = [
        torch.ones(slots),
        torch.full((slots,), 50),
        torch.full((slots,), 0.9),
        torch.full((slots,), 0.01),
        torch.ones(slots),
        torch.zeros(slots),
        torch.zeros(slots),
        torch.zeros(slots, dtype=torch.bool),
        torch.arange(slots),
        torch.zeros(slots, vocab),
        torch.zeros(slots, vocab, dtype=torch.bool),
        torch.zeros(slots, vocab, dtype=torch.int32),
    ]

    def step() -> list[torch.Tensor]:
        qkv = kernels.layernorm_qkv(x, gamma, beta, 1e-5, matrices["qkv"], None, biases["qkv"])
        q = kernels.rotary_append(qkv, None, None, None, None, 1e-5, cos, sin, at, at, cache)
        attended = kernels.decode_attention(q, cache, at, at + 600, length, 0.125)
        summed = kernels.linear_residual(attended, matrices["dense"], None, biases["dense"], x)
        bias = torch.zeros(hidden)
        up, down_t = matrices["up"], matrices["down_t"]
        out = kernels.mlp(summed, gamma, beta, 1e-5, up, None, biases["up"], down_t, None, bias, None)
        logits = kernels.lm_head(out, gamma, beta, 1e-5, matrices["lm_head"], None, vocab)
        return [qkv, q, attended, summed, out, logits, kernels.sample(logits, at, at, *settings)]

    kept: list[torch.Tensor] = []
    taken = most_allocated(lambda: kept.extend(step()))
    assert tokens * vocab * 4 < taken <= Workspace(config, GPU, vocab).step_bytes(tokens, length)


def test_short_prompts_are_padded_on_a_gpu() -> None:
    """To the rows of a tile, at every product of a layer and of the vocabulary."""
    config = PersimmonConfig()
    space = Workspace(config, GPU, config.vocab_size)
    assert space.prompt_bytes(1) >= 4 * max(512 * 3 * config.intermediate_size, 2 * 64 * config.vocab_size)
    small = Workspace(small_config(), GPU, 30_000)  # whose outputs are 256 rows a tile
    assert space.prompt_bytes(1) > small.prompt_bytes(1) >= 4 * 2 * 256 * 30_000
    assert Workspace(small_config(), CPU, 30_000).prompt_bytes(1) < small.prompt_bytes(1) / 100


def test_graphs_hold_their_logits_and_share_the_rest() -> None:
    """By hand: of 16 rows and 1000 positions, five sizes times three lengths (256, 512 and 1000)."""
    space = Workspace(small_config(), GPU, 4096)
    step = space.step_bytes(16, 1000)
    assert space.graphs_bytes(1000, 4) == (1 + 2 + 4 + 8 + 16) * 3 * 4096 * 4 + 2 * step
    more = space.graphs_bytes(1000, 20) - 2 * space.step_bytes(20, 1000)
    assert more == (31 + 20) * 3 * 4096 * 4
    assert Workspace(small_config(), CPU, 4096).graphs_bytes(1000, 4) == 0


def test_what_every_slot_keeps() -> None:
    config = small_config()
    tables = 2 * 1000 * (config.rotary_dim // 2) * 4
    ends, sampler = 2 * 4 * 4096, 5 * (4 + 4 + 1) * 4096
    fixed = tables + ends + sampler
    assert Workspace(config, CPU, 4096).fixed_bytes(1000, 4) == fixed
    assert Workspace(config, GPU, 4096).fixed_bytes(1000, 4) == fixed + CUDA_ALLOWANCE_BYTES


def test_the_plan_counts_every_table_of_the_sampler() -> None:
    """Those that are as wide as the vocabulary; the numbers of a slot are few."""
    tables = [t for t in vars(Sampler(4, 4096, CPU)).values() if isinstance(t, torch.Tensor) and t.ndim == 2]
    ends = 2 * 4 * 4096
    space = Workspace(small_config(), CPU, 4096)
    assert space.fixed_bytes(0, 4) == ends + sum(table.nbytes for table in tables)


def test_without_the_extension_rows_have_an_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 8B at its whole context the kernels take half of it."""
    config = PersimmonConfig()
    space = Workspace(config, GPU, config.vocab_size)
    known = space.step_bytes(16, 16384)
    assert workspace.allowance_reason() is None
    monkeypatch.setattr(workspace.extension, "load", lambda: Extension(False, "not built"))
    assert workspace.allowance_reason() == "the extension is not loaded"
    allowed = space.step_bytes(16, 16384)
    assert allowed == 16 * (4 * (8 * 4096 + 262_144) + ROW_ALLOWANCE_BYTES)
    assert 1.8 < 16 * ROW_ALLOWANCE_BYTES / (known - allowed + 16 * ROW_ALLOWANCE_BYTES) < 2.5


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_more_positions_never_take_less(device: torch.device) -> None:
    """The longest context is found by halving, which needs that."""
    space = Workspace(small_config(), device, 4096)
    sizes = [
        space.prompt_bytes(count)
        + space.step_bytes(16, count)
        + space.graphs_bytes(count, 2)
        + space.fixed_bytes(count, 2)
        for count in range(1, 1200)
    ]
    assert sizes == sorted(sizes)
