"""The task files of tools/evaluation, on hand-made documents with the fields of their data sets."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'lm-eval>=0.4.13,<0.5')")

import datasets  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from adept_fast.integrations.lm_eval import AdeptFastLM  # noqa: E402

FOLDER = Path(__file__).resolve().parents[2] / "tools" / "evaluation"


def mmlu(at: int) -> dict[str, Any]:
    return {
        "question": f" Which is {at}? ",
        "subject": "x",
        "choices": ["zero", "one", "two", "three"],
        "answer": at,
    }


def arc(at: int) -> dict[str, Any]:
    labels, names = (["A", "B", "C"], ["zero", "one", "two"]) if at else (["1", "2"], ["zero", "one"])
    choices = {"label": labels, "text": names}
    return {"id": str(at), "question": f"Which is {at}?", "choices": choices, "answerKey": labels[at]}


def winogrande(at: int) -> dict[str, Any]:
    sentence = f"The cup was not in the bag {at} because the _ was too large."
    return {"sentence": sentence, "option1": "bag", "option2": "Tea Cup", "answer": str(at + 1)}


def trivia(at: int) -> dict[str, Any]:
    answer = {"value": f"The Beatles {at}", "aliases": [f"Beatles, {at}", f"Fab Four {at}"]}
    return {"question": f"Who sang {at}?", "question_id": str(at), "answer": answer}


def humaneval(at: int) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{at}",
        "prompt": f'def plus(x):\n    """Adds {at}.\n    >>> plus(0)\n    {at}\n    """\n',
        "canonical_solution": f"    return x + {at}\n",
        "test": f"def check(candidate):\n    assert candidate(3) == 3 + {at}\n",
        "entry_point": "plus",
    }


# What load_dataset is asked for, and what a document of it looks like.
SOURCES = {
    ("cais/mmlu", "astronomy"): mmlu,
    ("allenai/ai2_arc", "ARC-Easy"): arc,
    ("allenai/ai2_arc", "ARC-Challenge"): arc,
    ("allenai/winogrande", "winogrande_xl"): winogrande,
    ("mandarjoshi/trivia_qa", "rc.nocontext"): trivia,
    ("openai/openai_humaneval", None): humaneval,
}


@pytest.fixture(autouse=True)
def handmade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of two documents a split, the examples' last first."""

    def load(path: str, name: str | None = None, **_options: Any) -> dict[str, datasets.Dataset]:
        make = SOURCES.get((path, name)) or SOURCES[(path, "astronomy")]
        return {
            "test": datasets.Dataset.from_list([make(0), make(1)]),
            "validation": datasets.Dataset.from_list([make(0), make(1)]),
            "train": datasets.Dataset.from_list([make(1), make(0)]),
            "dev": datasets.Dataset.from_list([make(1), make(0)]),
        }

    monkeypatch.setattr(datasets, "load_dataset", load)


def load(name: str) -> Any:
    found = TaskManager(include_path=str(FOLDER), include_defaults=False).load([name])["tasks"]
    return next(iter(found.values())) if len(found) == 1 else found


def prompt(task: Any, doc: dict[str, Any]) -> str:
    text: str = task.fewshot_context(doc, task.config.num_fewshot)
    return text


def score(task: Any, doc: dict[str, Any], answer: str) -> float:
    value: float = task.process_results(doc, [answer])["acc"]
    return value


def test_every_file_is_a_task() -> None:
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    assert set(manager.all_tasks) == {
        f"adept_fast_{name}"
        for name in ("mmlu", "winogrande", "arc_easy", "arc_challenge", "triviaqa", "humaneval", "demo_facts")
    }
    assert len(list(FOLDER.glob("*.yaml"))) == 7


def test_loading_a_file_registers_the_model() -> None:
    for file in FOLDER.glob("*.py"):
        assert "import adept_fast.integrations.lm_eval" in file.read_text(encoding="utf-8"), file
    assert get_model("adept-fast") is AdeptFastLM


def test_mmlu() -> None:
    tasks = load("adept_fast_mmlu")
    assert len(tasks) == 57
    task = tasks["adept_fast_mmlu::astronomy"]
    doc = mmlu(2)
    assert prompt(task, doc) == (
        "Question: Which is 1?\nA. zero\nB. one\nC. two\nD. three\nAnswer: B\n\n"
        "Question: Which is 2?\nA. zero\nB. one\nC. two\nD. three\nAnswer:"
    )
    right = [" C", "C.", " (C)", "C. two", "C) two", " C: two", "C\n"]
    wrong = ["", " B", "Cat", "C two", "two", "c", "The answer is C", "[C]"]
    assert [score(task, doc, answer) for answer in right] == [1.0] * len(right)
    assert [score(task, doc, answer) for answer in wrong] == [0.0] * len(wrong)
    assert task.config.generation_kwargs["until"] == ["\n"]


@pytest.mark.parametrize("name", ["adept_fast_arc_easy", "adept_fast_arc_challenge"])
def test_arc(name: str) -> None:
    task = load(name)
    assert prompt(task, arc(0)) == (
        "Question: Which is 1?\nA. zero\nB. one\nC. two\nAnswer: B\n\n"
        "Question: Which is 0?\n1. zero\n2. one\nAnswer:"
    )
    assert [score(task, arc(0), answer) for answer in ("1", " (1).", "A", "2", "11")] == [1, 1, 0, 0, 0]


def test_winogrande() -> None:
    task = load("adept_fast_winogrande")
    doc = winogrande(1)
    shot, asked = prompt(task, winogrande(0)).split("\n\n")
    assert shot.endswith('Question: Which fits the blank, "bag" or "Tea Cup"?\nAnswer: Tea Cup')
    assert asked.startswith("Sentence: The cup was not in the bag 0 because the _")
    assert asked.endswith("\nAnswer:")
    assert [score(task, doc, answer) for answer in (" tea cup.", "The Tea Cup", "bag", "cup", "")] == [
        1,
        1,
        0,
        0,
        0,
    ]


def test_triviaqa() -> None:
    task = load("adept_fast_triviaqa")
    assert (
        prompt(task, trivia(0))
        == "Question: Who sang 1?\nAnswer: The Beatles 1\n\nQuestion: Who sang 0?\nAnswer:"
    )
    answers = (" Beatles 0", "the fab four 0!", "BEATLES 0.", "Beatles 1", "It was the Beatles 0", "")
    assert [score(task, trivia(0), answer) for answer in answers] == [1, 1, 1, 0, 0, 0]


def test_humaneval() -> None:
    task = load("adept_fast_humaneval")
    assert task.config.unsafe_code
    doc = humaneval(4)
    assert prompt(task, doc) == doc["prompt"]
    answers = (doc["canonical_solution"], "    return x\n", "    return (\n", "    exit()\n", "")
    assert [score(task, doc, answer) for answer in answers] == [1, 0, 0, 0, 0]


def test_a_program_that_does_not_end_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load("adept_fast_humaneval")
    (module,) = (module for name, module in sys.modules.items() if name.endswith("evaluation/programs"))
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    assert score(task, humaneval(4), "    while True: pass\n") == 0


def test_the_facts() -> None:
    task = load("adept_fast_demo_facts")
    docs = list(task.test_docs())
    assert len(docs) > 300
    doc = random.Random(0).choice(docs)
    assert prompt(task, doc) == f"human: {doc['question']}\n\nadept:"
    assert score(task, doc, f" {doc['answer']}") == 1
    assert score(task, doc, f" {doc['answer']} Indeed.") == 0
    assert {doc["held_out"] for doc in docs} == {True, False}
