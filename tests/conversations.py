"""Random conversations with a runtime that has a prefix cache, compared with one that has none."""

from __future__ import annotations

import random

from adept_fast import Request, Runtime, SamplingParams
from adept_fast.engine.request_handle import RequestHandle

_MAX_PROMPT = 250  # tokens


def cached_tokens_of_random_conversations(
    cold: Runtime, warm: Runtime, beginnings: list[list[int]], count: int = 60, seed: int = 5
) -> int:
    """How many tokens of prompts were not read, in all.

    Prompts go on from the beginnings and from earlier answers. Raises AssertionError if an answer differs
    from the cold runtime's in a bit; of a cancelled one, what came before.
    """
    draw = random.Random(seed)
    texts = list(beginnings)
    handles: list[tuple[Request, RequestHandle]] = []
    for _ in range(count):
        prompt = draw.choice(texts)[: draw.randrange(20, 200)]
        prompt = [*prompt, *(draw.randrange(3, 400) for _ in range(draw.randrange(3)))]
        request = Request(prompt, _params(draw))
        handles.append((request, warm.engine.submit(request)))
        for _ in range(draw.randrange(6)):
            warm.engine.step()
        if draw.random() < 0.2:
            draw.choice(handles)[1].cancel()
        if draw.random() < 0.5:
            texts.append(draw.choice(handles)[1].sequence.ids[:_MAX_PROMPT])
    cached = 0
    for request, handle in handles:
        found = handle.result()
        cached += found.timings.cached_tokens
        (expected,) = cold.generate([request.prompt_ids], request.params)
        kept = len(found.token_ids)
        assert found.token_ids == expected.token_ids[:kept]
        assert found.logprobs == (expected.logprobs or [])[:kept]
        assert found.finish_reason in (expected.finish_reason, "interrupted")
    assert warm.engine.counts() == (0, 0)
    return cached


def _params(draw: random.Random) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=draw.randrange(1, 12),
        temperature=draw.choice([0, 0.9]),
        seed=draw.randrange(9),
        logprobs=1,
        prompt_lookup=draw.choice([0, 3]),
        ignore_eos=True,
    )
