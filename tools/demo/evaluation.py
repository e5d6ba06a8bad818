"""The share of questions that a checkpoint answers right, word for word, and its layers' sparsity."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adept_fast.chat.format import STOP, chat_prompt
from tools.demo.questions import read_questions

MAX_NEW_TOKENS = 128
VARIED_CATEGORIES = (
    *("capital", "capital_of", "continent", "currency", "country"),
    *("element_symbol", "element_by_symbol", "element", "define", "opposite"),
)
VARIED_QUESTIONS = 300
SPARSITY_QUESTIONS = 150
SAMPLE_SEED = 5

# Answers prompts, with the beginning-of-text token first or not.
Answerer = Callable[[Sequence[str], bool], list[str]]


def runtime_answerer(directory: Path, batch_size: int = 16) -> Answerer:
    """An answerer: this project's runtime, greedy."""
    from adept_fast import Runtime

    runtime = Runtime.load(directory, max_batch_size=batch_size, progress=False)

    def answer(prompts: Sequence[str], add_bos: bool) -> list[str]:
        settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "stop": STOP, "add_bos": add_bos}
        results = runtime.generate(list(prompts), **settings)
        return [result.text.strip() for result in results]

    return answer


def count_right(answerer: Answerer, records: Sequence[dict[str, Any]], add_bos: bool = True) -> list[bool]:
    """For each question whether its answer is the right one, word for word."""
    answers = answerer([chat_prompt(record["question"]) for record in records], add_bos)
    return [answer == record["answer"] for answer, record in zip(answers, records, strict=True)]


def accuracy_by_category(
    answerer: Answerer, records: Sequence[dict[str, Any]], add_bos: bool
) -> dict[str, dict[str, Any]]:
    """[right, asked] by category and by whether the phrasing was held out."""
    counts: dict[str, dict[str, Any]] = collections.defaultdict(lambda: {"seen": [0, 0], "held_out": [0, 0]})
    for record, right in zip(records, count_right(answerer, records, add_bos), strict=True):
        count = counts[record["category"]]["held_out" if record["held_out"] else "seen"]
        count[0] += right
        count[1] += 1
    return dict(counts)


def accuracy_of_variants(answerer: Answerer, records: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """The same for a sample of questions as people type them, each with and without the first token."""
    known = [r for r in records if r["category"] in VARIED_CATEGORIES and not r["held_out"]]
    unknown = [r for r in records if r["category"].startswith("unknown_")]
    generator = random.Random(SAMPLE_SEED)
    known = generator.sample(known, min(VARIED_QUESTIONS, len(known)))
    variants = {
        "as in training": known,
        "lower case": [{**r, "question": r["question"].lower()} for r in known],
        "no end mark": [{**r, "question": r["question"].rstrip("?.!")} for r in known],
        "lower case, no end mark": [{**r, "question": r["question"].lower().rstrip("?.!")} for r in known],
        "to be declined": unknown,
    }
    results = {}
    for name, varied in variants.items():
        if not varied:
            continue
        for add_bos in (True, False):
            right = count_right(answerer, varied, add_bos)
            label = name if add_bos else f"{name}, without BOS"
            results[label] = [sum(right), len(right)]
    return results


def zero_shares(directory: Path, records: Sequence[dict[str, Any]]) -> list[float]:
    """For each layer the share of hidden units that are zero after the squared ReLU."""
    import torch
    from transformers import AutoTokenizer, PersimmonForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = PersimmonForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    zeros = [0.0] * model.config.num_hidden_layers
    units = [0] * model.config.num_hidden_layers

    def counting_hook(layer: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            zeros[layer] += float((output == 0).sum())
            units[layer] += output.numel()

        return hook

    for i, layer in enumerate(model.model.layers):
        layer.mlp.act.register_forward_hook(counting_hook(i))
    generator = random.Random(SAMPLE_SEED)
    for record in generator.sample(list(records), min(SPARSITY_QUESTIONS, len(records))):
        text = f"{chat_prompt(record['question'])} {record['answer']}"
        with torch.no_grad():
            model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), use_cache=False)
    return [zero / count for zero, count in zip(zeros, units, strict=True)]


def evaluate(
    directory: Path, questions: Path | None = None, answerer: Answerer | None = None
) -> dict[str, Any]:
    """All figures for a checkpoint; by default with the questions beside it and this runtime."""
    records = read_questions(questions or directory / "questions.jsonl")
    answerer = answerer or runtime_answerer(directory)
    return {
        "categories": accuracy_by_category(answerer, records, add_bos=True),
        "variants": accuracy_of_variants(answerer, records),
        "zero_shares": zero_shares(directory, records),
    }


def ratio(right: int, asked: int) -> str:
    """The two numbers and their quotient."""
    return f"{right:5d} of {asked:5d} = {right / asked:.3f}" if asked else " " * 22


def summary(results: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [f"{'':32s} {'phrasing as in training':24s} held-out phrasing"]
    totals = {"seen": [0, 0], "held_out": [0, 0]}
    for category, counts in results["categories"].items():
        lines.append(f"{category:32s} {ratio(*counts['seen']):24s} {ratio(*counts['held_out'])}")
        if not category.startswith("unknown_"):
            for name, (right, asked) in counts.items():
                totals[name][0] += right
                totals[name][1] += asked
    lines.append(f"{'all facts':32s} {ratio(*totals['seen']):24s} {ratio(*totals['held_out'])}")
    lines += ["", *(f"{name:40s} {ratio(*counts)}" for name, counts in results["variants"].items())]
    shares = ", ".join(f"{share:.2f}" for share in results["zero_shares"])
    return "\n".join([*lines, "", f"zeros after the squared ReLU, by layer: {shares}"])
