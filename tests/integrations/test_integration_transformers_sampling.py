"""Sampling on an accelerated model: transformers' distribution, and torch's seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import random_tensors, small_config
from scipy.stats import chisquare
from torch import Tensor
from transformers import LogitsProcessorList, PersimmonForCausalLM, TemperatureLogitsWarper
from transformers import PersimmonConfig as TheirConfig

from adept_fast.integrations.transformers import accelerate
from adept_fast.integrations.transformers.acceleration import Acceleration

VOCABULARY = 13
DRAWS = 1200

SETTINGS: list[dict[str, Any]] = [
    {"top_k": 0},
    {"top_k": 0, "temperature": 1.7},
    {"top_k": 4, "temperature": 0.6},
    {"top_k": 0, "top_p": 0.7},
    {"top_k": 0, "min_p": 0.12},
    {"top_k": 0, "repetition_penalty": 1.8},
    {"top_k": 9, "top_p": 0.85, "min_p": 0.03, "temperature": 1.3, "repetition_penalty": 1.2},
    {"top_k": 0, "top_p": 0.8, "renormalize_logits": True},
    # The ends of what is not handed over.
    {"top_k": 0, "temperature": 1e-20},
    {"top_k": 3, "temperature": 1e20},
    {"top_k": 2**31 - 1, "top_p": 1e-46, "min_p": 1e-40},
    {"top_k": 0, "repetition_penalty": 1e10},
]


@pytest.fixture(autouse=True)
def _nothing_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(acceleration: Acceleration, what: str) -> None:
        raise AssertionError(f"handed over: {what}")

    monkeypatch.setattr(Acceleration, "warn_once", refuse)


def tiny_model() -> PersimmonForCausalLM:
    config = small_config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = PersimmonForCausalLM(TheirConfig(**config.to_dict())).eval()
    model.load_state_dict(random_tensors(config, seed=1))
    return model


@pytest.fixture(scope="module")
def theirs() -> PersimmonForCausalLM:
    return tiny_model()


@pytest.fixture(scope="module")
def ours() -> PersimmonForCausalLM:
    return accelerate(tiny_model())


def distribution(model: PersimmonForCausalLM, ids: Tensor, settings: dict[str, Any]) -> Tensor:
    """What transformers itself draws the next token of each row from: [rows, vocab]."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        max_new_tokens=1,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    return out.scores[0].double().softmax(-1)


def assert_drawn_from(found: Tensor, expected: Tensor) -> None:
    """Chi-square of counts against probabilities, both [outcomes]."""
    assert found[expected == 0].sum() == 0
    possible = expected > 0
    probabilities = expected[possible] / expected[possible].sum()
    assert possible.sum() == 1 or chisquare(found[possible], probabilities * found.sum()).pvalue > 1e-3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_have_their_distribution(theirs: Any, ours: Any, settings: dict[str, Any]) -> None:
    prompt = torch.tensor([[3, 7, 7, 1]])
    torch.manual_seed(0)
    drawn = ours.generate(
        prompt,
        do_sample=True,
        max_new_tokens=2,
        eos_token_id=None,
        num_return_sequences=DRAWS,
        **settings,
    )
    assert drawn.shape == (DRAWS, 6)
    first = distribution(theirs, prompt, settings)[0]
    assert_drawn_from(drawn[:, 4].bincount(minlength=VOCABULARY), first)
    continued = torch.cat((prompt.expand(VOCABULARY, -1), torch.arange(VOCABULARY)[:, None]), 1)
    second = distribution(theirs, continued, settings)  # [first token, second token]
    pairs = (drawn[:, 4] * VOCABULARY + drawn[:, 5]).bincount(minlength=VOCABULARY**2)
    assert pairs[(first[:, None] * second).flatten() == 0].sum() == 0
    likeliest = int(first.argmax())
    assert_drawn_from(drawn[drawn[:, 4] == likeliest, 5].bincount(minlength=VOCABULARY), second[likeliest])


def test_draws_of_different_seeds_are_independent(theirs: Any, ours: Any) -> None:
    prompt = torch.tensor([[5, 2]])
    counts = torch.zeros(VOCABULARY, dtype=torch.int64)
    for seed in range(300):
        torch.manual_seed(seed)
        counts[ours.generate(prompt, do_sample=True, max_new_tokens=1, top_k=0)[0, -1]] += 1
    assert_drawn_from(counts, distribution(theirs, prompt, {"top_k": 0})[0])


def test_the_seed_of_torch_determines_the_text(ours: Any) -> None:
    ids = torch.tensor([[0, 0, 5, 2], [3, 4, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    def texts(seed: int | None = None) -> list[list[int]]:
        if seed is not None:
            torch.manual_seed(seed)
        return ours.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            max_new_tokens=30,
            num_return_sequences=3,
            eos_token_id=None,
        ).tolist()

    first = texts(1)
    following = texts()
    assert texts(1) == first
    assert texts() == following
    assert first != following != texts(2)
    assert len(set(map(tuple, first))) == len(first) == 6


def test_greedy_text_takes_no_random_number(ours: Any) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    ours.generate(torch.tensor([[5, 2]]), max_new_tokens=5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_scores_are_what_was_drawn_from(theirs: Any, ours: Any, settings: dict[str, Any]) -> None:
    ids = torch.tensor([[3, 7, 1], [2, 2, 9]])
    out = ours.generate(
        ids,
        do_sample=True,
        max_new_tokens=6,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **settings,
    )
    for step, scores in enumerate(out.scores):
        expected = distribution(theirs, out.sequences[:, : 3 + step], settings)
        torch.testing.assert_close(scores.double().softmax(-1), expected, atol=1e-4, rtol=0)
        chosen = out.sequences[:, 3 + step, None]
        assert scores.gather(1, chosen).isfinite().all()
    transitions = ours.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    assert transitions.shape == (2, 6)


def test_a_processor_that_transformers_would_have_made_is_served(theirs: Any, ours: Any) -> None:
    prompt = torch.tensor([[3, 7, 7, 1]])
    torch.manual_seed(0)
    drawn = ours.generate(
        prompt,
        do_sample=True,
        top_k=0,
        max_new_tokens=1,
        num_return_sequences=DRAWS,
        logits_processor=LogitsProcessorList([TemperatureLogitsWarper(2.5)]),
    )
    expected = distribution(theirs, prompt, {"top_k": 0, "temperature": 2.5})[0]
    assert_drawn_from(drawn[:, 4].bincount(minlength=VOCABULARY), expected)
