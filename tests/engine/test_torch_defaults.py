"""Torch's default device and dtype, and its inference mode, which a program may have set, change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from transformers import PersimmonForCausalLM as TheirModel

from adept_fast import Runtime, SamplingParams
from adept_fast.integrations.transformers import accelerate
from adept_fast.modeling import PersimmonForCausalLM

PARAMS = [
    SamplingParams(max_new_tokens=5, logprobs=2),
    SamplingParams(
        max_new_tokens=5, temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=3
    ),
    SamplingParams(max_new_tokens=5, prompt_lookup=5),
]
PROMPT = "human: What is the capital of Peru?\n\nadept:"


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "device meta": lambda: default_device("meta"),
    "device cpu": lambda: default_device("cpu"),
    "within a device": lambda: torch.device("meta"),
    "dtype float64": lambda: default_dtype(torch.float64),
    "dtype float16": lambda: default_dtype(torch.float16),
    "inference mode": torch.inference_mode,
}
WEIGHTS: list[dict[str, Any]] = [
    {},
    {"weights": "int8", "warmup": True},
    {"weights": "int4"},
    {"dtype": "bfloat16", "cache_dtype": "float32"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config()
    return write_huggingface(
        tmp_path_factory.mktemp("small") / "model", config, random_tensors(config), demo_tokenizer()
    )


def load(directory: Path, **keywords: Any) -> Runtime:
    return Runtime.load(directory, device="cpu", max_batch_size=3, progress=False, **keywords)


def work(runtime: Runtime) -> list[Any]:
    found: list[Any] = [generation.token_ids for generation in runtime.generate([PROMPT, "a", "b"], PARAMS)]
    found += [runtime.generate("a", PARAMS[0]).logprobs, runtime.score([PROMPT, ""])]
    return [*found, list(runtime.stream(PROMPT, PARAMS[1]))]


@pytest.mark.slow
@pytest.mark.parametrize("keywords", WEIGHTS, ids=str)
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_runtime(directory: Path, name: str, keywords: dict[str, Any]) -> None:
    outside = load(directory, **keywords)
    expected = work(outside)
    with DEFAULTS[name]():
        inside = load(directory, **keywords)
        assert work(inside) == work(outside) == expected
        begun = inside.stream(PROMPT, PARAMS[0])
        first = next(begun)
    assert [first, *begun] == list(outside.stream(PROMPT, PARAMS[0]))
    assert work(inside) == work(outside) == expected


@pytest.mark.parametrize("name", [name for name in DEFAULTS if "meta" not in name and "within" not in name])
def test_an_accelerated_model(directory: Path, name: str) -> None:
    """transformers itself does not generate where the default device is meta."""
    model = accelerate(TheirModel.from_pretrained(directory, dtype=torch.bfloat16))
    ids = torch.tensor([[5, 9, 33, 8], [5, 6, 7, 8]])
    settings = {"max_new_tokens": 9, "eos_token_id": None, "repetition_penalty": 1.2}
    expected = model.generate(ids, **settings).tolist()
    with DEFAULTS[name]():
        assert model.generate(ids, **settings).tolist() == expected
        accelerate(model)
        assert model.generate(ids, **settings).tolist() == expected
    assert model.generate(ids, **settings).tolist() == expected


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "inference mode"])
def test_modules(directory: Path, name: str) -> None:
    ids = torch.tensor([[5, 9, 33, 8], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])

    def read() -> list[torch.Tensor]:
        model = PersimmonForCausalLM.from_pretrained(directory)
        out = model(ids, attention_mask=mask, labels=ids)
        out.loss.backward()
        gradient = model.model.layers[0].mlp.dense_4h_to_h.weight.grad
        further = model(ids[:, :1], cache=out.cache)
        return [out.logits, out.loss, gradient, further.logits]

    expected = read()
    with DEFAULTS[name]():
        found = read()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
