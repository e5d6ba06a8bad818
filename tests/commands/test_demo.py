"""The shipped checkpoint knows what it is said to know (tools/demo/README.md has the whole evaluation)."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from adept_fast import Runtime
from adept_fast.chat.format import STOP, chat_prompt
from adept_fast.checkpoint import demo_path

pytestmark = pytest.mark.slow

# Every thirteenth question is asked here. Measured of those: 0.997, 0.986 and 1.000; what is left between is
# for answers that another machine's rounding may turn.
EVERY = 13
SEEN, HELD_OUT, DECLINED = 0.985, 0.97, 0.95


@pytest.fixture(scope="module")
def right() -> dict[str, float]:
    """Share of questions answered word for word, by kind."""
    lines = (demo_path() / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines][::EVERY]
    runtime = Runtime.load("demo", max_batch_size=16, progress=False)
    prompts = [chat_prompt(question["question"]) for question in questions]
    answers = runtime.generate(prompts, stop=STOP)
    asked: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for question, answer in zip(questions, answers, strict=True):
        kind = "held out" if question["held_out"] else "seen"
        if question["category"].startswith("unknown_"):
            kind = "declined"
        asked[kind] += 1
        correct[kind] += answer.text.strip() == question["answer"]
    return {kind: correct[kind] / asked[kind] for kind in asked}


def test_it_knows_its_facts(right: dict[str, float]) -> None:
    assert right["seen"] >= SEEN


def test_it_knows_them_in_other_words_too(right: dict[str, float]) -> None:
    assert right["held out"] >= HELD_OUT


def test_it_says_what_it_does_not_know(right: dict[str, float]) -> None:
    assert right["declined"] >= DECLINED


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("what is the capital of france", "The capital of France is Paris."),
        ("What is 7 times 8?", "7 times 8 is 56."),
        ("What does Fe stand for in chemistry?", "Fe is the symbol for iron."),
    ],
)
def test_it_answers_as_people_type(demo: Runtime, question: str, answer: str, add_bos: bool) -> None:
    assert demo.generate(chat_prompt(question), stop=STOP, add_bos=add_bos).text.strip() == answer
