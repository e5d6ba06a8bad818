"""Requests with any settings, and whether a batch of them gets what each of them gets alone."""

from __future__ import annotations

import random
from dataclasses import replace

from adept_fast import Runtime, SamplingParams


def random_request(draw: random.Random, vocab_size: int) -> tuple[list[int], SamplingParams]:
    """A prompt with repetitions, some of them of a step's tokens and a few more, and any settings."""
    pattern = [draw.randrange(3, vocab_size) for _ in range(draw.choice([1, 4, 30]))]
    prompt = (pattern * 250)[: draw.choice([1, 2, 15, 16, 17, 33, 100, 250])]
    lookup = draw.choice([0, 0, 1, 3, 7])
    counts = not lookup and draw.random() < 0.4
    biased = draw.sample(range(3, vocab_size), draw.choice([0, 0, 1, 50]))
    params = SamplingParams(
        max_new_tokens=draw.choice([1, 6, 20]),
        temperature=draw.choice([0, 0.7, 1.0, 2.0]),
        top_p=draw.choice([1.0, 0.9]),
        top_k=draw.choice([0, 40]),
        min_p=draw.choice([0.0, 0.01]),
        repetition_penalty=1.0 if lookup else draw.choice([1.0, 1.3]),
        frequency_penalty=draw.choice([-1.5, 0.3, 2.0]) if counts else 0.0,
        presence_penalty=draw.choice([-0.5, 0.0, 1.1]) if counts else 0.0,
        logit_bias={token_id: draw.choice([-100, 2.5, 8]) for token_id in biased},
        seed=draw.randrange(2**63),
        prompt_lookup=lookup,
        logprobs=draw.choice([0, 2]),
        ignore_eos=True,
    )
    return prompt, params


def check_company(many: Runtime, one: Runtime, sequences: int, draw: random.Random) -> None:
    """In batches of 1 to 16, to the bit of each log-probability; those alone without guesses."""
    left = [random_request(draw, many.tokenizer.vocab_size) for _ in range(sequences)]
    while left:
        count = draw.randint(1, 16)
        requests, left = left[:count], left[count:]
        together = many.generate([ids for ids, _ in requests], [params for _, params in requests])
        for (ids, params), found in zip(requests, together, strict=True):
            (alone,) = one.generate([ids], replace(params, prompt_lookup=0))
            assert found.token_ids == alone.token_ids, params
            assert found.logprobs == alone.logprobs, params
