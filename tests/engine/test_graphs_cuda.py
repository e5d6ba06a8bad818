"""Decode steps in CUDA graphs on a GPU: what they give, what they take, and that the host is left out."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface

from adept_fast import Runtime, SamplingParams
from adept_fast.engine.graphs import CudaCapture

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU that this torch can use"
)

CONTEXT = 4200
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(hidden_size=128, num_attention_heads=2, max_position_embeddings=CONTEXT)
    path = tmp_path_factory.mktemp("graphs")
    write_huggingface(path, config, random_tensors(config, seed=3), demo_tokenizer())
    return path


def load(path: Path, cuda_graphs: str, *, max_batch_size: int = 1, dtype: str = "float16") -> Runtime:
    return Runtime.load(
        path,
        device="cuda",
        dtype=dtype,
        cuda_graphs=cuda_graphs,
        max_batch_size=max_batch_size,
        progress=False,
    )


def prompt_of(length: int) -> list[int]:
    return [5 + (7 * at + length) % 4000 for at in range(length)]


PARAMS = {
    "greedy": SamplingParams(max_new_tokens=40, ignore_eos=True, logprobs=2),
    "drawn": SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=1.1, top_p=0.9, seed=3),
    "penalised": SamplingParams(max_new_tokens=40, ignore_eos=True, repetition_penalty=1.3),
}


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("batch", [1, 3, 5, 16, 20])
def test_replays_give_the_bits_of_launches(checkpoint: Path, batch: int, params: str) -> None:
    prompts = [
        prompt_of(length) for length in (230, 3, 500, 17, 9, 60, 1, 2, 5, 4, 31, 32, 33, 8, 6, 7, 9, 8, 7, 6)
    ]
    captured, launched = (
        load(checkpoint, way, max_batch_size=batch).generate(prompts[:batch], PARAMS[params])
        for way in ("required", "off")
    )
    assert [g.token_ids for g in captured] == [g.token_ids for g in launched]
    assert [g.logprobs for g in captured] == [g.logprobs for g in launched]  # equal to the bit
    alone = load(checkpoint, "required").generate([prompts[0]], PARAMS[params])[0]  # in a bucket of its own
    assert alone.token_ids == captured[0].token_ids
    assert alone.logprobs == captured[0].logprobs


def test_the_tokens_are_those_of_the_reference(checkpoint: Path) -> None:
    """In float32, where the gaps between logits are wider than what rounding leaves."""
    params = SamplingParams(max_new_tokens=300, ignore_eos=True)
    found = load(checkpoint, "required", dtype="float32").generate([prompt_of(20)], params)[0]
    cpu = Runtime.load(checkpoint, device="cpu", dtype="float32", progress=False)
    assert found.token_ids == cpu.generate([prompt_of(20)], params)[0].token_ids


def test_4096_tokens_in_one_go(checkpoint: Path) -> None:
    runtime = load(checkpoint, "required")
    params = SamplingParams(max_new_tokens=4096, ignore_eos=True, temperature=1.0, seed=1)
    (found,) = runtime.generate([prompt_of(10)], params)
    assert len(found.token_ids) == 4096
    assert found.token_ids == load(checkpoint, "off").generate([prompt_of(10)], params)[0].token_ids
    report = runtime.captures()
    assert report is not None
    assert {length for _, length in report.shapes} == {256, 512, 1024, 2048, 4096, CONTEXT}


def test_other_settings_are_not_captured_anew(checkpoint: Path) -> None:
    runtime = load(checkpoint, "required")
    launched = load(checkpoint, "off")
    for params in PARAMS.values():
        (found,), (expected,) = (r.generate([prompt_of(9)], params) for r in (runtime, launched))
        assert found.token_ids == expected.token_ids
    report = runtime.captures()
    assert report is not None
    assert report.shapes == [(1, 256)]
    assert report.failure is None


def test_garbage_with_a_graph_does_not_end_a_capture() -> None:
    device = torch.device("cuda")
    capture, ones = CudaCapture(device), torch.ones(8, device=device)
    garbage = [capture(lambda: ones + 1, lambda: ones + 1)]

    def step() -> torch.Tensor:
        cycle: list[object] = [garbage.pop()]
        cycle.append(cycle)
        del cycle
        kept = [[number] for number in range(100_000)]  # at which the collector runs by itself
        return ones + len(kept)

    captured = capture(lambda: ones, step)
    captured.replay()
    assert captured.logits.tolist() == [100_001.0] * 8
    assert gc.isenabled()


def test_what_lies_past_a_sequence_is_never_read(checkpoint: Path) -> None:
    found = []
    for filler in (0.0, float("nan"), float("inf")):
        runtime = load(checkpoint, "required", max_batch_size=3)
        runtime.engine.runner.cache.data.fill_(filler)
        prompts = [prompt_of(250), prompt_of(3), prompt_of(40)]
        found.append([g.token_ids for g in runtime.generate(prompts, PARAMS["greedy"])])
    assert found[0] == found[1] == found[2]


def test_guesses_change_nothing(checkpoint: Path) -> None:
    runtime = load(checkpoint, "required")
    prompt = [5, 6, 7, 8, 9] * 30
    plain = runtime.generate([prompt], max_new_tokens=60, ignore_eos=True)[0]
    guessed = runtime.generate([prompt], max_new_tokens=60, ignore_eos=True, prompt_lookup=7)[0]
    assert plain.token_ids == guessed.token_ids


def test_the_host_waits_for_nothing_and_launches_a_graph_a_step(checkpoint: Path) -> None:
    runtime = load(checkpoint, "required")
    params = SamplingParams(max_new_tokens=101, ignore_eos=True)
    runtime.generate([prompt_of(5)], params)
    calls: dict[str, int] = {}
    counts = []
    for tokens in (2, 101):
        stream = runtime.stream([*prompt_of(5)], SamplingParams(max_new_tokens=tokens, ignore_eos=True))
        next(stream, None)  # the prompt's token, for which the host does wait
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in stream:
                pass
        calls = {event.key: event.count for event in profile.key_averages()}
        counts.append(sum(calls.get(name, 0) for name in WAITS))
    assert calls.get("cudaGraphLaunch", 0) >= 98
    # The profiler itself waits at its ends: whatever that is, more steps do not add to it.
    assert counts[1] <= counts[0] + 1


def test_memory_stays_within_the_plan(checkpoint: Path) -> None:
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    runtime = Runtime.load(checkpoint, device="cuda", max_batch_size=4, warmup=True, progress=False)
    runtime.generate([prompt_of(3000)] * 4, SamplingParams(max_new_tokens=300, ignore_eos=True))
    after, _ = torch.cuda.mem_get_info()
    assert before - after <= runtime.memory().total_bytes
