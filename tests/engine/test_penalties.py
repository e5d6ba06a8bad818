"""Frequency and presence penalties and logit_bias, from SamplingParams through a Runtime."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy_sampling import History, next_tokens
from reading import hidden_states

from adept_fast import ParameterError, Request, Runtime, SamplingParams
from adept_fast.sampling import MAX_BIASES, Sampler

VOCAB = 40
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def demo() -> Runtime:
    """On a CPU: there a text's logits can be computed again with the same bits."""
    return Runtime.load("demo", device="cpu", max_batch_size=4, progress=False)


def test_a_bias_is_kept_as_pairs_in_order() -> None:
    params = SamplingParams(logit_bias={9: 1, 2: -100, 5: 0.5})
    assert params.logit_bias == ((2, -100.0), (5, 0.5), (9, 1.0))
    assert hash(params) == hash(SamplingParams(logit_bias=[(9, 1), (5, 0.5), (2, -100)]))  # type: ignore[arg-type]
    assert dataclasses.replace(params, seed=3).logit_bias == params.logit_bias
    assert SamplingParams(logit_bias={}) == SamplingParams()
    full = SamplingParams(logit_bias=dict.fromkeys(range(MAX_BIASES), 1.0))
    assert len(full.logit_bias) == MAX_BIASES == 1024


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ({5: 100.5}, "logit_bias: the number of the token id 5 is 100.5; expected a number from -100 to 100"),
        ({5: float("nan")}, "logit_bias: the number of the token id 5 is nan; expected a number"),
        ({5: "1"}, "logit_bias: the number of the token id 5 is '1'; expected a number"),
        ({5: True}, "logit_bias: the number of the token id 5 is True; expected a number"),
        ({-1: 1}, "logit_bias: a token id is -1; expected an integer from 0 to 2147483647"),
        ({"5": 1}, "logit_bias: a token id is '5'; expected an integer"),
        ({1.5: 1}, "logit_bias: a token id is 1.5; expected an integer"),
        ({2**31: 1}, "logit_bias: a token id is 2147483648; expected an integer"),
        ([(5, 1), (5, 2)], "logit_bias has the token id 5 twice; expected it once"),
        ([5, 6], "logit_bias has 5; expected a mapping of token ids to numbers"),
        ("5=1", "logit_bias is '5=1'; expected a mapping of token ids to numbers"),
        (None, "logit_bias is None; expected a mapping of token ids to numbers"),
        (dict.fromkeys(range(1025), 0), "logit_bias has 1025 entries; expected at most 1024"),
    ],
)
def test_a_wrong_bias_is_named(bias: Any, expected: str) -> None:
    with pytest.raises(ParameterError) as caught:
        SamplingParams(logit_bias=bias)
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [-2.01, 2.5, float("nan"), float("inf"), True, "1", None])
def test_a_penalty_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=rf"^{name} is .*; expected a number from -2 to 2$"):
        SamplingParams(**{name: value})
    assert getattr(SamplingParams(**{name: -2}), name) == -2.0  # type: ignore[arg-type]


@pytest.mark.parametrize("token_id", [4096, 2**31 - 1])
def test_a_bias_beyond_the_vocabulary_is_refused_before_it_is_queued(demo: Runtime, token_id: int) -> None:
    size = demo.tokenizer.vocab_size
    biased = SamplingParams(logit_bias={3: 1.0, token_id: 1.0})
    expected = f"logit_bias has the token id {token_id}; expected 0 to {size - 1}"
    with pytest.raises(ParameterError, match=expected):
        demo.engine.submit_all([Request([5], SamplingParams()), Request([5], biased)])
    with pytest.raises(ParameterError, match=expected):
        demo.generate("a", biased)
    assert demo.engine._scheduler.sequences() == ()
    last = demo.generate("a", max_new_tokens=2, logit_bias={size - 1: 100}, ignore_eos=True)
    assert last.token_ids == [size - 1] * 2


def logits_after_each(runtime: Runtime, ids: list[int]) -> torch.Tensor:
    """float32 [tokens, vocab]."""
    model, cache = runtime.engine.runner.model, runtime.engine.runner.cache
    return model.all_logits(hidden_states(model, cache, ids, 16))[:, : runtime.tokenizer.vocab_size]


@pytest.mark.parametrize(
    "settings",
    [
        {"frequency_penalty": 1.9, "presence_penalty": 0.7},
        {"frequency_penalty": -2.0},
        {"presence_penalty": 2.0, "repetition_penalty": 1.2},
        {"logit_bias": {5: 6.0, 9: 6.5, 2806: -100}, "frequency_penalty": 0.8},
        {"temperature": 1.2, "top_p": 0.9, "presence_penalty": 1.5, "logit_bias": {70: 3.0}, "seed": 4},
    ],
    ids=str,
)
@torch.inference_mode()
def test_a_text_is_what_float64_gives(demo: Runtime, settings: dict[str, Any]) -> None:
    prompt = demo.tokenizer.encode("the cat and the dog and the cat and the")
    params = SamplingParams(max_new_tokens=72, ignore_eos=True, **settings)
    ids = demo.generate([prompt], params)[0].token_ids
    logits = logits_after_each(demo, prompt + ids).double().numpy()
    for at, token_id in enumerate(ids):
        history = History(tuple(prompt), tuple(ids[:at]))
        position = len(prompt) + at
        assert token_id in next_tokens(logits[position - 1], params, history, position), at
    assert ids != demo.generate([prompt], max_new_tokens=72, ignore_eos=True)[0].token_ids


def test_log_probabilities_are_those_of_the_model_alone(demo: Runtime) -> None:
    prompt = demo.tokenizer.encode("Once upon a time")
    found = demo.generate(
        [prompt],
        max_new_tokens=8,
        ignore_eos=True,
        logprobs=1,
        frequency_penalty=2.0,
        presence_penalty=-1.0,
        logit_bias={prompt[-1]: 9, 7: 20},
    )[0]
    scored = demo.score([prompt + found.token_ids])[0].logprobs[len(prompt) :]
    assert found.logprobs is not None
    np.testing.assert_allclose([entry.logprob for entry in found.logprobs], scored, atol=1e-4)
    assert any(entry.top[0][0] != entry.token_id for entry in found.logprobs)


def test_any_company_gives_the_same(demo: Runtime) -> None:
    prompt = demo.tokenizer.encode("Once upon a time")
    each = [
        SamplingParams(max_new_tokens=20, ignore_eos=True, **settings)  # type: ignore[arg-type]
        for settings in (
            {},
            {"frequency_penalty": 1.0},
            {"temperature": 1.0, "seed": 3},
            {"logit_bias": {9: 3.5, 7: 3}, "presence_penalty": 0.5},
            {"prompt_lookup": 5, "logit_bias": {9: 5}},
            {"repetition_penalty": 1.4},
        )
    ]
    together = demo.generate([prompt] * len(each), each)
    for params, found in zip(each, together, strict=True):
        assert found.token_ids == demo.generate([prompt], params)[0].token_ids, params


class TestSampler:
    def choose(self, sampler: Sampler, slot: int, logits: torch.Tensor) -> int:
        return int(sampler.choose(logits[None], torch.tensor([slot]), torch.tensor([1])))

    @pytest.mark.parametrize("skips_unused", [True, False])
    def test_a_slot_forgets_what_its_last_sequence_had(self, skips_unused: bool) -> None:
        sampler = Sampler(2, VOCAB, CPU, skips_unused=skips_unused)
        logits = torch.zeros(VOCAB)
        logits[7], logits[8], logits[9] = 2.0, 1.5, 1.25
        counting = SamplingParams(frequency_penalty=1.0)
        biased = SamplingParams(logit_bias={9: 5.0})
        sampler.start(0, counting, [7, 7, 7])
        sampler.start(1, biased, [])  # so that nothing is skipped
        assert [self.choose(sampler, 0, logits) for _ in range(3)] == [7, 8, 9]
        sampler.start(0, counting, [7])
        assert self.choose(sampler, 0, logits) == 7
        sampler.start(0, biased, [])
        assert self.choose(sampler, 0, logits) == 9
        sampler.start(0, SamplingParams(), [])
        assert self.choose(sampler, 0, logits) == 7
        sampler.start(0, SamplingParams(logit_bias={8: 1.0}), [])
        assert self.choose(sampler, 0, logits) == 8

    def test_a_sequence_goes_on_from_its_tokens(self) -> None:
        """Of the prompt, the repetition penalty alone counts the tokens; of the text, every penalty does."""
        logits = torch.zeros(VOCAB)
        logits[3], logits[4], logits[5] = 3.0, 2.75, 2.0
        counting = SamplingParams(frequency_penalty=0.5)
        for generated, expected in (([], 3), ([3], 4), ([3, 4], 3), ([3, 3, 4], 4), ([3, 3, 4, 4, 4], 3)):
            sampler = Sampler(1, VOCAB, CPU)
            sampler.start(0, counting, [3, 3, 3, 3, 4], generated_ids=generated)
            assert self.choose(sampler, 0, logits) == expected, generated
        sampler.start(0, SamplingParams(repetition_penalty=2.0), [3], generated_ids=[4])
        assert self.choose(sampler, 0, logits) == 5

    def test_settings_that_are_not_used_cost_nothing(self) -> None:
        sampler = Sampler(2, VOCAB, CPU)
        tables = sampler._bias, sampler._counts, sampler._seen
        for table in tables:
            table.fill_(1)
        sampler.start(0, SamplingParams(temperature=1.0, seed=1), [3], generated_ids=[4])
        sampler.choose(torch.zeros(1, VOCAB), torch.tensor([0]), torch.tensor([1]))
        assert all(bool((table == 1).all()) for table in tables)
        assert sampler._needed == {"temperature"}

    def test_tables_keep_their_addresses(self) -> None:
        sampler = Sampler(2, VOCAB, CPU, skips_unused=False)

        def addresses() -> list[int]:
            held = (*vars(sampler).values(), *sampler._settings.values())
            return [value.data_ptr() for value in held if isinstance(value, torch.Tensor)]

        before = addresses()
        params = SamplingParams(frequency_penalty=1.0, repetition_penalty=2.0, logit_bias={3: 1.0})
        for slot in (0, 1, 0):
            sampler.start(slot, params, [1], generated_ids=[2, 2])
            self.choose(sampler, slot, torch.zeros(VOCAB))
            sampler.stop(slot)
        assert addresses() == before
