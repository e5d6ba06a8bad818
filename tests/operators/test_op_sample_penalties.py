"""Bias and penalties against float64 numpy, a text at a time, on plain PyTorch, the emulator and a GPU."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from backends import BACKENDS, THIN, Backend, on
from dispatch_double import as_cuda
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_sampling import History, adjusted, next_tokens

from adept_fast.sampling import Sampler, SamplingParams

SLOTS = 4
FEW = 24  # tokens, so that a text repeats some
TILE = 2048

on_samplers = on([one for one in BACKENDS if one.family == "cuda" or one.name == "reference"])


def eighths(lowest: int, highest: int) -> st.SearchStrategy[float]:
    """Numbers of few bits, so that float32 sums them as float64 does, and many are equal."""
    return st.integers(8 * lowest, 8 * highest).map(lambda n: n / 8)


any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 3, 12]),
    top_p=st.sampled_from([1.0, 0.93, 0.41]),
    min_p=st.sampled_from([0.0, 0.0101]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 2.0, 0.5]),
    frequency_penalty=st.just(0.0) | eighths(-2, 2),
    presence_penalty=st.just(0.0) | eighths(-2, 2),
    logit_bias=st.just({}) | st.dictionaries(st.integers(0, FEW - 1), eighths(-100, 100), max_size=FEW),
    seed=st.integers(0, 2**63 - 1),
)


@contextmanager
def sampler_on(backend: Backend, vocab: int, skips_unused: bool = True) -> Iterator[Sampler]:
    if backend.name == "emulated":
        with as_cuda(backend.operators):
            yield Sampler(SLOTS, vocab, backend.device)
    else:
        yield Sampler(SLOTS, vocab, backend.device, skips_unused=skips_unused)


@dataclass
class Text:
    """A sequence in a slot."""

    slot: int
    params: SamplingParams
    history: History

    @property
    def position(self) -> int:
        """Of the last token."""
        return len(self.history.prompt) + len(self.history.generated) - 1

    def start(self, sampler: Sampler) -> None:
        sampler.start(self.slot, self.params, self.history.prompt, generated_ids=self.history.generated)

    def add(self, token_id: int) -> None:
        self.history = History(self.history.prompt, (*self.history.generated, token_id))


def choose(sampler: Sampler, texts: list[Text], logits: torch.Tensor, device: torch.device) -> list[int]:
    slots = torch.tensor([text.slot for text in texts] + [-1]).to(device)
    positions = torch.tensor([text.position for text in texts] + [0]).to(device)
    return sampler.choose(logits.to(device), slots, positions).tolist()[:-1]


def check_texts(
    backend: Backend, sampler: Sampler, texts: list[Text], logits: torch.Tensor, interrupted: int
) -> None:
    """Steps with logits [steps, rows + 1, vocab]; after one of them, a step's results are lost."""
    for text in texts:
        text.start(sampler)
    for step, of_step in enumerate(logits):
        if step == interrupted:
            choose(sampler, texts, logits[-1], backend.device)
            for text in texts:
                text.start(sampler)
        chosen = choose(sampler, texts, of_step, backend.device)
        for row, text in enumerate(texts):
            values = of_step[row].double().numpy()
            allowed = next_tokens(values, text.params, text.history, text.position + 1)
            assert chosen[row] in allowed, (step, row, text)
            text.add(chosen[row])


@settings(
    max_examples=6 if THIN else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    params=st.lists(any_params, min_size=1, max_size=3),
    before=any_params,
    skips_unused=st.booleans(),
    interrupted=st.integers(0, 7),
    draw=st.randoms(use_true_random=False),
)
@on_samplers
def test_texts_of_any_settings(
    backend: Backend,
    params: list[SamplingParams],
    before: SamplingParams,
    skips_unused: bool,
    interrupted: int,
    draw: random.Random,
) -> None:
    """In slots that other sequences had before, beside others, and with a step that is lost."""
    with sampler_on(backend, FEW, skips_unused) as sampler:
        slots = draw.sample(range(SLOTS), len(params))
        texts = [
            Text(slot, own, History(tuple(draw.choices(range(FEW), k=draw.randint(1, 5)))))
            for slot, own in zip(slots, params, strict=True)
        ]
        earlier = [Text(slot, before, History((1, 2), (3, 3, 5))) for slot in range(SLOTS)]
        for text in earlier:
            text.start(sampler)
        generator = torch.Generator().manual_seed(draw.randrange(2**32))
        logits = torch.randint(-24, 24, (7, len(texts) + 1, FEW), generator=generator) / 8
        choose(sampler, earlier, torch.zeros(SLOTS + 1, FEW), backend.device)
        for text in earlier:
            sampler.stop(text.slot)
        check_texts(backend, sampler, texts, logits, interrupted)


@pytest.mark.parametrize("vocab", [TILE + 1] if THIN else [1, TILE + 1, 2 * TILE + 3])
@on_samplers
def test_vocabularies_of_several_tiles(backend: Backend, vocab: int) -> None:
    """The likeliest token wanders from tile to tile, and both ends of the vocabulary have a bias."""
    favoured = {0: 3.5, vocab // 2: 4.0, vocab - 1: 4.25}
    params = [
        SamplingParams(frequency_penalty=1.5, logit_bias=favoured),
        SamplingParams(presence_penalty=2.0, repetition_penalty=2.0, logit_bias=favoured),
        SamplingParams(
            temperature=0.5,
            top_k=40,
            frequency_penalty=-0.5,
            presence_penalty=-2,
            logit_bias=favoured,
            seed=3,
        ),
    ]
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(-24, 24, (6, 1, vocab), generator=generator) / 8
    logits[1:] = logits[0]  # a penalty alone makes one choice differ from the next
    texts = [Text(slot, own, History((vocab - 1,))) for slot, own in enumerate(params)]
    with sampler_on(backend, vocab) as sampler:
        check_texts(backend, sampler, texts, logits.expand(6, 4, vocab).contiguous(), 3)
    if vocab > 1:
        assert all(len(set(text.history.generated)) > 2 for text in texts[:2])


@on_samplers
def test_the_ends_of_the_ranges(backend: Backend) -> None:
    """Biases of 100 decide alone, and -2 makes a token that was drawn once stay."""
    logits = torch.randint(-80, 80, (5, 4, FEW), generator=torch.Generator().manual_seed(1)) / 8
    texts = [
        Text(0, SamplingParams(logit_bias={23: 100}), History((23,))),
        Text(
            1,
            SamplingParams(temperature=1.0, seed=1, logit_bias=dict.fromkeys(range(23), -100)),
            History((1,)),
        ),
        Text(
            2,
            SamplingParams(temperature=2.0, seed=2, frequency_penalty=-2, presence_penalty=-2),
            History((2,)),
        ),
    ]
    with sampler_on(backend, FEW) as sampler:
        check_texts(backend, sampler, texts, logits, 2)
    assert texts[0].history.generated == texts[1].history.generated == (23,) * 5


@on_samplers
def test_raw_logits_decide_whether_there_is_a_distribution(backend: Backend) -> None:
    """A bias neither makes a token possible that is not, nor mends a NaN; nothing is counted then."""
    params = SamplingParams(logit_bias={0: 100, 3: -100}, frequency_penalty=2.0)
    logits = torch.zeros(4, FEW)
    logits[0, 5] = float("nan")
    logits[1] = -float("inf")
    logits[2] = -float("inf")
    logits[2, 3] = -3e38
    texts = [Text(slot, params, History((slot,))) for slot in range(3)]
    with sampler_on(backend, FEW) as sampler:
        for text in texts:
            text.start(sampler)
        assert choose(sampler, texts, logits, backend.device) == [-1, -1, 3]


def test_numpy_is_what_the_definition_says() -> None:
    """By hand: 1.5 + 1 = 2.5, halved as it was seen, less 2 × 0.25 and 0.125."""
    params = SamplingParams(
        repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.125, logit_bias={1: 1.0}
    )
    values = adjusted(np.array([4.0, 1.5, -1.0, 7.0]), params, History((0,), (1, 2, 1)))
    assert values.tolist() == [2.0, 0.625, -2.375, 7.0]
