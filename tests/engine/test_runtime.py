"""The runtime on the shipped checkpoint: generation, streaming, batches, ends, errors."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from adept_fast import GenerationError, ParameterError, Runtime, SamplingParams
from adept_fast.chat.format import STOP, chat_prompt
from adept_fast.engine.stats import Stats
from adept_fast.model import Persimmon

FRANCE = chat_prompt("What is the capital of France?")
PROMPTS = [
    FRANCE,
    "",
    chat_prompt("Recite Humpty Dumpty."),
    "Once upon a time",
    chat_prompt("What is 3 plus 4?"),
    "human: Tell me a story about a fox, and please let it be one that I have never heard before.\n\nadept:",
    "a",
]


@pytest.mark.parametrize("max_seq_len", [1, 2, 64])
def test_a_warm_up_changes_nothing_but_the_wait(max_seq_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(warmup: bool) -> tuple[list[list[int]], Stats]:
        runtime = Runtime.load(
            "demo", device="cpu", max_seq_len=max_seq_len, max_batch_size=2, warmup=warmup, progress=False
        )
        read.clear()
        prompts = [[5], [9]] if max_seq_len < 9 else [[5, 6, 7], [9]]
        sampled = runtime.generate(prompts, temperature=0.9, top_p=0.9, seed=4, max_new_tokens=8)
        return [generation.token_ids for generation in sampled], runtime.stats()

    read: list[int] = []
    prefill = Persimmon.prefill_chunk
    monkeypatch.setattr(
        Persimmon,
        "prefill_chunk",
        lambda self, segments, cache: read.append(len(segments)) or prefill(self, segments, cache),
    )
    expected = generate(warmup=False)
    assert generate(warmup=True) == expected
    runtime = Runtime.load("demo", device="cpu", max_seq_len=max_seq_len, progress=False)
    read.clear()
    runtime.warm_up()
    assert read
    assert runtime.stats() == Stats(0, 0)


def test_a_runtime_is_not_copied(demo: Runtime) -> None:
    stream = demo.stream("a", max_new_tokens=1)
    for thing, expected in (
        (demo, "a Runtime can be neither copied nor pickled; expected Runtime.load in each process"),
        (stream, "a TextStream can be neither copied nor pickled; its result can"),
        ([demo], "a Runtime can be neither copied nor pickled"),
    ):
        for take in (copy.copy, copy.deepcopy, pickle.dumps):
            if isinstance(thing, list) and take is copy.copy:
                continue
            with pytest.raises(TypeError, match=expected) as caught:
                take(thing)  # type: ignore[operator]
            assert "\n" not in str(caught.value)
    list(stream)
    for result in (stream.result, demo.score("a"), SamplingParams(stop="x")):
        assert pickle.loads(pickle.dumps(result)) == copy.deepcopy(result) == result


def test_a_warm_up_leaves_a_stream_whole() -> None:
    runtime = Runtime.load("demo", device="cpu", max_seq_len=64, progress=False)
    expected = runtime.generate("Once upon a time", ignore_eos=True, max_new_tokens=40).text
    stream = iter(runtime.stream("Once upon a time", ignore_eos=True, max_new_tokens=40))
    first = next(stream)
    runtime.warm_up()
    assert first + "".join(stream) == expected


def test_the_demo_knows_the_capital_of_france(demo: Runtime) -> None:
    generation = demo.generate(FRANCE)
    assert generation.text == " The capital of France is Paris."
    assert generation.finish_reason == "eos"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_text_goes_on_where_the_prompt_ends(demo: Runtime, prompt: str) -> None:
    ids = demo.tokenizer.encode(prompt)
    generation = demo.generate(prompt, max_new_tokens=30)
    assert prompt + generation.text == demo.tokenizer.decode([*ids, *generation.token_ids])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_new_tokens=24),
        SamplingParams(max_new_tokens=24, temperature=0.9, seed=5),
        SamplingParams(max_new_tokens=24, temperature=1.3, top_k=30, top_p=0.9, min_p=0.01, seed=6),
        SamplingParams(max_new_tokens=24, repetition_penalty=1.3),
    ],
    ids=["greedy", "temperature", "filtered", "penalised"],
)
def test_a_batch_gives_each_prompt_what_it_gets_alone(demo: Runtime, params: SamplingParams) -> None:
    together = demo.generate(PROMPTS, params)
    for prompt, generation in zip(PROMPTS, together, strict=True):
        alone = demo.generate(prompt, params)
        assert generation.token_ids == alone.token_ids
        assert generation.text == alone.text
        assert generation.finish_reason == alone.finish_reason


def test_each_prompt_may_have_its_own_params(demo: Runtime) -> None:
    params = [
        SamplingParams(max_new_tokens=3),
        SamplingParams(max_new_tokens=9, temperature=1.0, seed=1),
        SamplingParams(max_new_tokens=9, stop="Paris"),
    ]
    together = demo.generate([FRANCE] * 3, params)
    assert [g.token_ids for g in together] == [demo.generate(FRANCE, p).token_ids for p in params]
    assert together[2].text == " The capital of France is "


def test_the_same_seed_gives_the_same_text_and_no_seed_another(demo: Runtime) -> None:
    def story(seed: int | None) -> str:
        return demo.generate("Once upon a time", temperature=1.2, seed=seed, max_new_tokens=40).text

    assert story(3) == story(3)
    assert len({story(3), story(4), story(None), story(None)}) == 4


@pytest.mark.parametrize("prompt", PROMPTS)
def test_streamed_pieces_are_the_generated_text(demo: Runtime, prompt: str) -> None:
    generation = demo.generate(prompt, max_new_tokens=40, temperature=1.5, seed=2)
    stream = demo.stream(prompt, max_new_tokens=40, temperature=1.5, seed=2)
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == stream.result.text == generation.text
    assert stream.result.token_ids == generation.token_ids
    assert list(stream) == []


def test_a_stop_string_that_spans_tokens_is_not_part_of_the_text(demo: Runtime) -> None:
    whole = demo.generate(FRANCE)
    assert len(whole.token_ids) > 5
    for start in range(len(whole.text) - 4):
        stop = whole.text[start : start + 4]
        stopped = demo.generate(FRANCE, stop=stop)
        assert stopped.text == whole.text[: whole.text.index(stop)]
        assert stopped.finish_reason == "stop"


def test_stop_tokens_end_the_text(demo: Runtime) -> None:
    whole = demo.generate(FRANCE)
    stopped = demo.generate(FRANCE, stop_token_ids=[whole.token_ids[3]])
    assert stopped.token_ids == whole.token_ids[:3]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_max_new_tokens_is_exact(demo: Runtime, count: int) -> None:
    generation = demo.generate("Once upon a time", max_new_tokens=count)
    assert len(generation.token_ids) == count
    assert generation.finish_reason == "length"
    assert generation.timings.decode_steps == max(0, count - 1)


def test_generation_ends_where_the_context_does() -> None:
    runtime = Runtime.load("demo", max_seq_len=24, progress=False)
    prompt = runtime.tokenizer.encode("Once upon a time")
    generation = runtime.generate([prompt], max_new_tokens=None, ignore_eos=True)[0]
    assert generation.finish_reason == "length"
    # The last token needs no place in the cache, since nothing is generated from it.
    assert len(prompt) + len(generation.token_ids) == 24 + 1
    full = runtime.generate([[5] * 24], max_new_tokens=10, ignore_eos=True)[0]
    assert len(full.token_ids) == 1
    with pytest.raises(ParameterError, match="prompt has 25 tokens; expected at most max_seq_len 24"):
        runtime.generate([[5] * 25])


def test_a_slot_is_reused_without_a_trace(demo: Runtime) -> None:
    first = demo.generate(FRANCE)
    demo.generate(["Once upon a time, " * 20] * 9, max_new_tokens=8)
    assert demo.generate(FRANCE).token_ids == first.token_ids


def test_a_stream_left_half_done_goes_on_beside_other_calls(demo: Runtime) -> None:
    expected = demo.generate("Once upon a time", ignore_eos=True, max_new_tokens=30).text
    for call in (lambda: list(demo.stream("a")), lambda: demo.generate(["a"] * 9), lambda: demo.score("a")):
        stream = demo.stream("Once upon a time", ignore_eos=True, max_new_tokens=30)
        first = next(stream)
        call()
        assert first + "".join(stream) == expected


def test_token_ids_may_be_of_any_integer_type(demo: Runtime) -> None:
    ids = demo.tokenizer.encode(FRANCE)
    expected = demo.generate(FRANCE).token_ids
    assert demo.generate([np.array(ids), torch.tensor(ids)])[1].token_ids == expected  # type: ignore[list-item]
    assert demo.generate([np.array(ids)])[0].token_ids == expected  # type: ignore[list-item]


def test_logprobs_are_those_of_the_score(demo: Runtime) -> None:
    prompt = demo.tokenizer.encode(FRANCE)
    generation = demo.generate([prompt], logprobs=3)[0]
    (scored,) = demo.score([[*prompt, *generation.token_ids]])
    assert generation.logprobs is not None
    assert len(generation.logprobs) == len(generation.token_ids)
    for entry, token_id, logprob in zip(
        generation.logprobs, generation.token_ids, scored.logprobs[len(prompt) :], strict=True
    ):
        assert entry.token_id == token_id == entry.top[0][0]
        assert entry.logprob == entry.top[0][1]
        assert entry.logprob == pytest.approx(logprob, abs=2e-3)
        assert len(entry.top) == 3
        assert entry.top[0][1] >= entry.top[1][1] >= entry.top[2][1]
    assert demo.generate(FRANCE).logprobs is None
    assert demo.generate(FRANCE, logprobs=0).logprobs[0].top == ()  # type: ignore[index]


def test_score_sums_up(demo: Runtime) -> None:
    (scored,) = demo.score("The capital of France is Paris.", add_bos=True)
    assert scored.token_ids == demo.tokenizer.encode("The capital of France is Paris.", add_bos=True)
    assert scored.logprobs[0] is None
    known = [value for value in scored.logprobs if value is not None]
    assert all(value <= 0 for value in known)
    assert scored.total == pytest.approx(sum(known))
    assert scored.perplexity == pytest.approx(math.exp(-sum(known) / len(known)))
    (empty,) = demo.score("", add_bos=False)
    assert empty.token_ids == empty.logprobs == []
    assert math.isnan(empty.perplexity)


def test_an_empty_prompt_starts_from_bos(demo: Runtime) -> None:
    expected = demo.generate([[demo.tokenizer.bos_id]], max_new_tokens=5)[0].token_ids
    assert demo.generate("", max_new_tokens=5, add_bos=False).token_ids == expected
    assert demo.generate("", max_new_tokens=5).token_ids == expected
    assert demo.generate([[]], max_new_tokens=5)[0].token_ids == expected


def test_bos_follows_the_checkpoint_and_can_be_set(demo: Runtime) -> None:
    ids = demo.tokenizer.encode(FRANCE, add_bos=False)
    with_bos = demo.generate([[demo.tokenizer.bos_id, *ids]], logprobs=0)[0].logprobs
    without = demo.generate([ids], logprobs=0)[0].logprobs
    assert demo.generate(FRANCE, logprobs=0).logprobs == with_bos
    assert demo.generate(FRANCE, logprobs=0, add_bos=True).logprobs == with_bos
    assert demo.generate(FRANCE, logprobs=0, add_bos=False).logprobs == without
    assert with_bos != without


class Interrupting:
    """Runs a decode step a few times, then acts as if Ctrl-C was pressed."""

    def __init__(self, step: object, after: int) -> None:
        self.step, self.left = step, after

    def __call__(self, *args: object, **keywords: object) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.step(*args, **keywords)  # type: ignore[operator, no-any-return]


def test_ctrl_c_returns_what_there_is(demo: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = demo.generate(FRANCE)
    monkeypatch.setattr(
        demo.engine.runner.model, "decode_step", Interrupting(demo.engine.runner.model.decode_step, 3)
    )
    prompts = [FRANCE] * (demo.max_batch_size + 1)
    *started, waiting = demo.generate(prompts)
    assert [g.finish_reason for g in started] == ["interrupted"] * demo.max_batch_size
    assert [g.token_ids for g in started] == [whole.token_ids[:4]] * demo.max_batch_size
    assert (waiting.text, waiting.finish_reason) == ("", "interrupted")


def test_ctrl_c_ends_a_stream(demo: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = demo.generate(FRANCE)
    monkeypatch.setattr(
        demo.engine.runner.model, "decode_step", Interrupting(demo.engine.runner.model.decode_step, 2)
    )
    # Text that might become the stop string is held back, and comes out with the interruption.
    stream = demo.stream(FRANCE, stop=" of Spain")
    assert "".join(stream) == stream.result.text == " The capital of"
    assert stream.result.finish_reason == "interrupted"
    assert stream.result.token_ids == whole.token_ids[:3]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_logits_are_an_error_and_not_text(
    demo: Runtime, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    decode_step = demo.engine.runner.model.decode_step

    def damaged(*args: object, **keywords: object) -> torch.Tensor:
        logits = decode_step(*args, **keywords)  # type: ignore[arg-type]
        logits[-1, 100] = bad
        return logits

    monkeypatch.setattr(demo.engine.runner.model, "decode_step", damaged)
    with pytest.raises(GenerationError, match="NaN or an infinity"):
        demo.generate(FRANCE)
    with pytest.raises(GenerationError):
        list(demo.stream(FRANCE, temperature=1.0))


def test_ids_above_the_tokenizer_are_never_sampled(demo: Runtime) -> None:
    logits = demo.engine.runner.model.logits(torch.zeros(1, demo.config.hidden_size))
    assert logits.shape == (1, demo.tokenizer.vocab_size)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda r: r.generate([]), "prompts is empty"),
        (lambda r: r.score([]), "texts is empty"),
        (lambda r: r.generate([[4096]]), "token id 4096; expected 0 to 4095"),
        (lambda r: r.generate([["a"]]), r"prompt is \['a'\]; expected text or token ids"),
        (lambda r: r.generate([7]), "prompt is 7; expected text or token ids"),
        (lambda r: r.generate([[-1]]), "token id -1"),
        (lambda r: r.generate("a" * 2000), "prompt has .* tokens; expected at most max_seq_len 512"),
        (lambda r: r.score("a" * 2000), "prompt has .* tokens"),
        (lambda r: r.generate("a", temperature=-1), "temperature is -1"),
        (lambda r: r.generate("a", top_p=2), "top_p is 2"),
        (lambda r: r.generate("a", warmth=2), "unknown sampling parameter: .*warmth"),
        (lambda r: r.generate("a", SamplingParams(), top_p=0.5), "params and the keyword top_p"),
        (lambda r: r.generate(["a", "b"], [SamplingParams()]), "params has 1 entries"),
        (lambda r: r.stream("a", max_new_tokens=-2), "max_new_tokens is -2"),
    ],
)
def test_mistakes_are_named_before_any_work(demo: Runtime, call: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        call(demo)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"device": "tpu"}, "device is 'tpu'; expected auto, cpu, cuda or cuda:N"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"dtype": "int3"}, "dtype is 'int3'; expected float32, float16, bfloat16"),
        ({"cache_dtype": "float64"}, "cache_dtype is 'float64'"),
        ({"max_batch_size": 0}, "max_batch_size is 0; expected an integer from 1"),
        ({"max_seq_len": 0}, "max_seq_len is 0; expected an integer from 1 to 512"),
        ({"max_seq_len": 513}, "max_seq_len is 513; expected an integer from 1 to 512"),
        ({"max_batch_size": 2**31 - 1}, "cpu has .* free, .* max_seq_len"),
    ],
)
def test_load_refuses_what_it_cannot_do(keywords: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Runtime.load("demo", progress=False, **keywords)  # type: ignore[arg-type]


def test_a_cuda_device_that_is_not_there_is_named() -> None:
    beyond = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ParameterError, match=f"device is '{beyond}'; this torch sees"):
        Runtime.load("demo", device=beyond, progress=False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype_answers(dtype: str, cache_dtype: str) -> None:
    runtime = Runtime.load("demo", dtype=dtype, cache_dtype=cache_dtype, progress=False)
    assert runtime.generate(FRANCE, stop=STOP).text == " The capital of France is Paris."
