"""What packed weights lose: how likely the right answers are, and how many are given word for word.

    python benchmarks/quality.py --output benchmarks/results/DEVICE/quality.json

The shipped checkpoint answers the questions that lie beside it, in float32 and in each format of packed
weights. ``log_likelihood_per_token`` is of the tokens of the right answers, each after the question and what
of the answer stands before it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import torch
from harness import describe_run, table, write_report
from tqdm import tqdm

from adept_fast import Runtime
from adept_fast.chat import STOP, chat_prompt
from adept_fast.checkpoint import demo_path
from adept_fast.quantize import WEIGHT_FORMATS

BASELINE = "float32"
BATCH = 32


@click.command()
@click.option(
    "--every", default=1, show_default=True, type=click.IntRange(min=1), help="Ask each n-th question."
)
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes.")
def main(every: int, threads: int, output: Path | None) -> None:
    """Ask the demo checkpoint its questions, in each format of weights."""
    torch.set_num_threads(threads)
    lines = (demo_path() / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines][::every]
    report = describe_run("quality", len(questions), threads)
    measured: dict[str, dict[str, Any]] = {}
    baseline: list[str] = []
    for weights in (BASELINE, *WEIGHT_FORMATS):
        figures, answers = measure(weights, questions)
        baseline = baseline or answers
        figures["answers_as_in_float32"] = share(map(str.__eq__, answers, baseline))
        measured[weights] = figures
    write_report(report | {"measured": measured}, output)
    names = list(measured[BASELINE])
    rows = [[name, *(f"{measured[weights][name]:.6g}" for weights in measured)] for name in names]
    click.echo(table(["", *measured], rows))


def measure(weights: str, questions: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Figures of one format, and its answers."""
    options = {"dtype": BASELINE} if weights == BASELINE else {"weights": weights}
    runtime = Runtime.load("demo", device="cpu", max_batch_size=BATCH, progress=False, **options)
    prompts = [chat_prompt(question["question"]) for question in questions]
    logprobs = [
        logprob
        for prompt, question in tqdm(
            zip(prompts, questions, strict=True), total=len(prompts), desc=f"{weights}: scoring", disable=None
        )
        for logprob in answer_logprobs(runtime, prompt, question["answer"])
    ]
    generations = runtime.generate(prompts, stop=STOP)
    answers = [generation.text.strip() for generation in generations]
    right = share(answer == question["answer"] for answer, question in zip(answers, questions, strict=True))
    figures = {
        "bytes_read_per_token": runtime.bytes_read_per_step(0),
        "weights_bytes": runtime.memory().weights_bytes,
        "log_likelihood_per_token": math.fsum(logprobs) / len(logprobs),
        "answer_tokens": len(logprobs),
        "exact_match": right,
    }
    return figures, answers


def answer_logprobs(runtime: Runtime, prompt: str, answer: str) -> list[float]:
    """Of each token of the answer, given the prompt."""
    (score,) = runtime.score([f"{prompt} {answer}"])
    asked = len(runtime.tokenizer.encode(prompt))
    return [logprob for logprob in score.logprobs[asked:] if logprob is not None]


def share(outcomes: Any) -> float:
    """How many of them are true, from 0 to 1."""
    counted = list(outcomes)
    return sum(counted) / len(counted)


if __name__ == "__main__":
    main()
