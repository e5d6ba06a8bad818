"""Requests as lm-eval makes them, and random texts to make them of."""

from __future__ import annotations

import random
from typing import Any

from lm_eval.api.instance import Instance

EXACT = {"dtype": "float32", "cache_dtype": "float32"}
WORDS = ["the", "capital", "of", "France", "is", "Paris", "gold", "3", "plus", "naïve", "你好", ",", "."]


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def texts(count: int, words: tuple[int, int], seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randint(*words))) for _ in range(count)]
