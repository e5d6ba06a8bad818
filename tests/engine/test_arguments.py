"""Every parameter of the public functions with values of every wrong type: one sentence that names it.

And what counts as a number or an id beside Python's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import small_config
from transformers import PersimmonConfig as TheirConfig
from transformers import PersimmonForCausalLM as TheirModel

from adept_fast import ConfigError, ParameterError, Runtime, SamplingParams, Tokenizer, TokenizerError
from adept_fast.chat.format import ChatError, HumanAdeptFormat, chat_prompt
from adept_fast.checkpoint import demo_path
from adept_fast.integrations.transformers import NotServedError, accelerate
from adept_fast.modeling import KeyValueCache, PersimmonForCausalLM
from adept_fast.system.short_text import short_repr


class Odd:
    """Says nothing about itself."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


WRONG: dict[str, Any] = {
    "none": None,
    "bool": True,
    "integer": 3,
    "negative": -1,
    "huge": 10**400,
    "longer than str allows": -(10**5000),
    "float": 1.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "complex": 1j,
    "text": "something else",
    "lines": "one\ntwo",
    "long text": "long " * 5000,
    "empty text": "",
    "bytes": b"bytes",
    "empty list": [],
    "list": [Odd()],
    "nested": [[[1]]],
    "dict": {"a": 1},
    "set": {1, 2},
    "object": Odd(),
    "class": Odd,
    "function": len,
    "numpy bool": np.bool_(True),
    "numpy floats": np.zeros(3),
    "numpy texts": np.array(["a", "b"]),
    "matrix": torch.zeros(2, 2, dtype=torch.int64),
    "floats": torch.zeros(3),
    "bools": torch.zeros(3, dtype=torch.bool),
    "meta": torch.zeros(3, dtype=torch.int64, device="meta"),
    "scalar on meta": torch.zeros((), dtype=torch.int64, device="meta"),
    "dtype": torch.int8,
    "params": [None],
}
NUMBERS = {"integer", "float"}
TEXTS = {"text", "lines", "long text", "empty text"}
ERRORS = (ParameterError, TokenizerError, ChatError, ConfigError, NotServedError)

PATH = str(demo_path())
TOKENIZER = Tokenizer.from_file(demo_path() / "tokenizer.model")


def load(**keywords: Any) -> Runtime:
    return Runtime.load(**{"progress": False, "device": "cpu", "max_seq_len": 64} | keywords)


def sampling(name: str) -> Callable[[Runtime, Any], object]:
    return lambda runtime, value: SamplingParams(**{name: value})


@functools.cache
def ours() -> PersimmonForCausalLM:
    return PersimmonForCausalLM(small_config(vocab_size=64))


@functools.cache
def theirs() -> TheirModel:
    return TheirModel(TheirConfig(**small_config(vocab_size=97).to_dict()))


# A parameter as messages name it, a call with a value of it, and which of the values above are right there.
TABLE: list[tuple[str, Callable[[Runtime, Any], object], set[str]]] = [
    ("path_or_name", lambda r, v: load(path_or_name=v), TEXTS),
    ("device", lambda r, v: load(device=v), set()),
    ("dtype", lambda r, v: load(dtype=v), set()),
    ("weights", lambda r, v: load(weights=v), {"none"}),
    ("max_seq_len", lambda r, v: load(max_seq_len=v), {"none", "integer"}),
    ("max_batch_size", lambda r, v: load(max_batch_size=v), {"integer"}),
    ("cache_dtype", lambda r, v: load(cache_dtype=v), set()),
    ("embedding", lambda r, v: load(embedding=v), set()),
    ("check_weights", lambda r, v: load(check_weights=v), {"bool", "numpy bool"}),
    ("cuda_graphs", lambda r, v: load(cuda_graphs=v), set()),
    ("warmup", lambda r, v: load(warmup=v), {"bool", "numpy bool"}),
    ("progress", lambda r, v: load(progress=v), {"bool", "numpy bool"}),
    ("prompt", lambda r, v: r.generate(v), TEXTS | {"matrix", "numpy texts"}),
    ("prompt", lambda r, v: r.generate([v]), TEXTS | {"empty list"}),
    ("prompt", lambda r, v: r.stream(v), TEXTS | {"empty list"}),
    ("texts|prompt", lambda r, v: r.score(v), TEXTS | {"matrix", "numpy texts"}),
    ("prompt", lambda r, v: r.score([v]), TEXTS | {"empty list"}),
    ("add_bos", lambda r, v: r.generate("a", add_bos=v), {"none", "bool", "numpy bool"}),
    ("add_bos", lambda r, v: r.stream("a", add_bos=v), {"none", "bool", "numpy bool"}),
    ("add_bos", lambda r, v: r.score([[1]], add_bos=v), {"none", "bool", "numpy bool"}),
    ("params", lambda r, v: r.generate("a", v), {"none"}),
    ("params", lambda r, v: r.generate(["a"], [v]), set()),
    ("params", lambda r, v: r.stream("a", v), {"none"}),
    ("context_tokens", lambda r, v: r.bytes_read_per_step(v), {"integer"}),
    ("max_new_tokens", sampling("max_new_tokens"), {"none", "integer"}),
    ("temperature", sampling("temperature"), NUMBERS),
    ("top_k", sampling("top_k"), {"integer"}),
    ("top_p", sampling("top_p"), set()),
    ("min_p", sampling("min_p"), set()),
    ("repetition_penalty", sampling("repetition_penalty"), NUMBERS),
    ("frequency_penalty", sampling("frequency_penalty"), NUMBERS | {"negative"}),
    ("presence_penalty", sampling("presence_penalty"), NUMBERS | {"negative"}),
    ("logit_bias", sampling("logit_bias"), {"empty list"}),
    ("logit_bias", lambda r, v: SamplingParams(logit_bias=[(v, 1.0)]), {"integer"}),
    ("logit_bias", lambda r, v: SamplingParams(logit_bias={5: v}), NUMBERS | {"negative"}),
    ("stop", sampling("stop"), {"text", "lines", "long text", "empty list", "numpy texts"}),
    ("stop_token_ids", sampling("stop_token_ids"), {"empty list"}),
    ("seed", sampling("seed"), {"none", "integer"}),
    ("logprobs", sampling("logprobs"), {"none", "integer"}),
    ("ignore_eos", sampling("ignore_eos"), {"bool", "numpy bool"}),
    ("prompt_lookup", sampling("prompt_lookup"), {"integer"}),
    ("model", lambda r, v: Tokenizer(v), set()),
    ("path", lambda r, v: Tokenizer.from_file(v), TEXTS),
    ("add_bos", lambda r, v: Tokenizer(TOKENIZER.model, add_bos=v), {"bool", "numpy bool"}),
    ("bos_token|no piece", lambda r, v: Tokenizer(TOKENIZER.model, bos_token=v), {"none", "empty text"}),
    ("text", lambda r, v: TOKENIZER.encode(v), TEXTS),
    ("add_bos", lambda r, v: TOKENIZER.encode("a", add_bos=v), {"none", "bool", "numpy bool"}),
    ("ids", lambda r, v: TOKENIZER.decode(v), {"empty list"}),
    (
        "skip_special_tokens",
        lambda r, v: TOKENIZER.decode([1], skip_special_tokens=v),
        {"none", "bool", "numpy bool"},
    ),
    ("token id", lambda r, v: TOKENIZER.piece(v), {"integer", "bool"}),
    ("token id", lambda r, v: TOKENIZER.is_control(v), {"integer", "bool"}),
    ("messages", lambda r, v: TOKENIZER.apply_chat_template(v), set()),
    ("messages", lambda r, v: HumanAdeptFormat().text([v]), set()),
    ("role", lambda r, v: HumanAdeptFormat().text([{"role": v, "content": "a"}]), set()),
    ("content", lambda r, v: HumanAdeptFormat().text([{"role": "user", "content": v}]), TEXTS),
    (
        "tokenize",
        lambda r, v: TOKENIZER.apply_chat_template([{"role": "user", "content": "a"}], tokenize=v),
        {"bool", "numpy bool"},
    ),
    (
        "add_generation_prompt",
        lambda r, v: HumanAdeptFormat().text([{"role": "user", "content": "a"}], add_generation_prompt=v),
        {"bool"},
    ),
    ("question", lambda r, v: chat_prompt(v), TEXTS),
    ("history", lambda r, v: chat_prompt("a", v), {"empty list", "empty text"}),
    ("model", lambda r, v: accelerate(v), set()),
    ("max_batch_size", lambda r, v: accelerate(theirs(), max_batch_size=v), {"none", "integer"}),
    ("max_seq_len", lambda r, v: accelerate(theirs(), max_seq_len=v), {"none", "integer"}),
    ("config", lambda r, v: PersimmonForCausalLM(v), set()),
    ("pretrained_model_name_or_path", lambda r, v: PersimmonForCausalLM.from_pretrained(v), TEXTS),
    ("dtype", lambda r, v: PersimmonForCausalLM.from_pretrained(PATH, dtype=v), set()),
    ("device", lambda r, v: PersimmonForCausalLM.from_pretrained(PATH, device=v), set()),
    ("config", lambda r, v: PersimmonForCausalLM.from_pretrained(PATH, config=v), {"none"}),
    ("save_directory", lambda r, v: ours().save_pretrained(v), TEXTS),
    ("max_batch_size", lambda r, v: cache(max_batch_size=v), {"integer"}),
    ("max_seq_len", lambda r, v: cache(max_seq_len=v), {"integer"}),
    ("length", lambda r, v: cache().crop(v), set()),
]


def cache(**sizes: Any) -> KeyValueCache:
    return KeyValueCache(small_config(), **{"max_batch_size": 1, "max_seq_len": 4} | sizes)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_types_are_one_sentence(demo: Runtime, wrong: str) -> None:
    for at, (name, call, right) in enumerate(TABLE):
        if wrong in right:
            continue
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (which ones is looked at below)
            call(demo, WRONG[wrong])
        message = str(caught.value)
        assert isinstance(caught.value, ERRORS), (at, repr(caught.value))
        assert any(part in message for part in name.split("|")), (at, message)
        assert "\n" not in message, (at, message)
        assert len(message) < 400, (at, message)


@pytest.mark.parametrize("name", ["input_ids", "inputs_embeds", "attention_mask", "position_ids"])
@pytest.mark.parametrize(
    "value", [[[1, 2]], "text", np.zeros((1, 2)), 7, torch.zeros(1, 2).bool()], ids=short_repr
)
def test_modules_take_tensors(name: str, value: Any) -> None:
    inputs: dict[str, Any] = {"input_ids": torch.tensor([[1, 2]])}
    if name == "inputs_embeds":
        inputs = {}
    if name in ("attention_mask", "position_ids") and isinstance(value, torch.Tensor):
        return
    with pytest.raises(ValueError, match=name):
        ours()(**inputs | {name: value})


@pytest.mark.parametrize("value", [[1], "2", 1.5, -1, True, None])
def test_logits_to_keep(value: Any) -> None:
    with pytest.raises(ParameterError, match="logits_to_keep is .*; expected an integer from 0"):
        ours()(torch.tensor([[1, 2]]), logits_to_keep=value)


def test_dtypes_and_devices_of_torch() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        runtime = load(dtype=dtype, cache_dtype=dtype, device=torch.device("cpu"))
        by_name = load(dtype=name, cache_dtype=name, device="cpu:0")
        assert (runtime.placement.dtype, runtime.placement.cache_dtype) == (dtype, dtype)
        assert runtime.placement == by_name.placement
        assert (
            runtime.generate("a", max_new_tokens=4).token_ids
            == by_name.generate("a", max_new_tokens=4).token_ids
        )


@pytest.mark.parametrize(
    "kind",
    [np.int8, np.uint16, np.int64, np.uint64, np.array, torch.tensor, lambda v: torch.tensor(v).short()],
)
def test_integers_of_numpy_and_torch(demo: Runtime, kind: Any) -> None:
    params = SamplingParams(
        max_new_tokens=kind(5), top_k=kind(7), seed=kind(3), logprobs=kind(1), stop_token_ids=[kind(9)]
    )
    expected = SamplingParams(max_new_tokens=5, top_k=7, seed=3, logprobs=1, stop_token_ids=(9,))
    assert params == expected
    assert hash(params) == hash(expected)
    assert all(type(value) is int for value in (params.max_new_tokens, params.seed, *params.stop_token_ids))
    assert (
        demo.generate([[kind(5), kind(6)]], params)[0].token_ids
        == demo.generate([[5, 6]], expected)[0].token_ids
    )
    assert load(max_seq_len=kind(64), max_batch_size=kind(1)).max_seq_len == 64
    assert TOKENIZER.decode([kind(70), kind(71)]) == TOKENIZER.decode([70, 71])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.array, torch.tensor])
def test_floats_of_numpy_and_torch(kind: Any) -> None:
    params = SamplingParams(
        temperature=kind(0.5),
        top_p=kind(0.5),
        min_p=kind(0.25),
        repetition_penalty=kind(1.5),
        frequency_penalty=kind(-0.5),
        logit_bias={np.int32(7): kind(2.5), 3: 1},
    )
    expected = SamplingParams(
        temperature=0.5,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        frequency_penalty=-0.5,
        logit_bias=((3, 1.0), (7, 2.5)),
    )
    assert params == expected
    assert hash(params) == hash(expected)
    assert type(params.temperature) is float


def test_arrays_of_ids(demo: Runtime) -> None:
    ids = TOKENIZER.encode("The capital of France is")
    expected = demo.generate([ids], max_new_tokens=3)[0].token_ids
    for prompt in (tuple(ids), np.array(ids), np.array(ids, np.uint16), torch.tensor(ids), range(5, 9)):
        want = (
            expected
            if not isinstance(prompt, range)
            else demo.generate([[5, 6, 7, 8]], max_new_tokens=3)[0].token_ids
        )
        assert demo.generate([prompt], max_new_tokens=3)[0].token_ids == want  # type: ignore[list-item]
        stream = demo.stream(prompt, max_new_tokens=3)  # type: ignore[arg-type]
        list(stream)
        assert stream.result.token_ids == want
        assert demo.score([prompt])[0].token_ids == list(map(int, prompt))  # type: ignore[list-item, arg-type]
        assert TOKENIZER.decode(prompt) == TOKENIZER.decode(list(map(int, prompt)))  # type: ignore[arg-type]
    both = demo.generate(torch.tensor([ids, ids]), max_new_tokens=3)  # type: ignore[arg-type]
    assert [generation.token_ids for generation in both] == [expected] * 2


def test_values_are_shown_shortened() -> None:
    assert short_repr("a" * 1000).startswith("'aaa")
    assert all(len(short_repr(value)) <= 150 for value in WRONG.values())
    assert short_repr(10**400) == "an integer of 1329 bits"
    assert short_repr(-(2**40)) == "-1099511627776"
    assert short_repr(torch.tensor(3)) == "Tensor of torch.int64 and shape [] (3)"
    assert short_repr(np.zeros((2, 3))) == "ndarray of float64 and shape [2, 3]"
