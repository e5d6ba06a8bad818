"""The loss of packed weights: how likely the right answers are, and how many are given word for word.

    python -m benchmarks quality --output benchmarks/results/DEVICE/quality.json

The shipped checkpoint answers the questions that lie beside it, in float32 and in each format of packed
weights. ``log_likelihood_per_token`` is of the tokens of the right answers, each after the question and what
of the answer stands before it. Text by greedy choice is held to that of float32 twice: whole answers
(``answers_as_in_float32``), and stories, of which ``greedy_tokens_as_in_float32`` is the share of tokens up
to the first that differs. ``kl_divergence_from_float32`` is of the distributions of each token of the stories
that float32 tells, the mean in nats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from adept_fast import Runtime
from adept_fast.chat.format import STOP, chat_prompt
from adept_fast.checkpoint import demo_path
from adept_fast.model import Segment
from benchmarks.result_file import describe_run, table, write_report

BASELINE = "float32"
FORMATS = ("int8", "int4-g32", "int4-g128")
BATCH = 32
STORIES = tuple(
    f"Tell me a story about a {animal}."
    for animal in ("fox", "bear", "cat", "dog", "bird", "fish", "mouse", "frog")
)
STORY_TOKENS = 96


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
    baseline: Texts | None = None
    for weights in (BASELINE, *FORMATS):
        figures, texts = measure(weights, questions, baseline)
        baseline = baseline or texts
        figures["kl_divergence_from_float32"] = mean_kl_divergence(baseline.logprobs, texts.logprobs)
        figures["answers_as_in_float32"] = share(map(str.__eq__, texts.answers, baseline.answers))
        figures["greedy_tokens_as_in_float32"] = same_tokens(texts.stories, baseline.stories)
        measured[weights] = figures
    write_report(report | {"measured": measured}, output)
    names = list(measured[BASELINE])
    rows = [[name, *(f"{measured[weights][name]:.6g}" for weights in measured)] for name in names]
    click.echo(table(["", *measured], rows))


@dataclass(frozen=True)
class Texts:
    """The answers of a format, the tokens of its stories, and how likely it finds each token of float32's."""

    answers: list[str]
    stories: list[list[int]]
    logprobs: torch.Tensor  # float32 [tokens of the stories of float32, vocab]


def measure(
    weights: str, questions: list[dict[str, Any]], baseline: Texts | None
) -> tuple[dict[str, Any], Texts]:
    """Figures of one format, and its texts; ``baseline`` is None for the baseline itself."""
    options: dict[str, Any] = {"dtype": BASELINE} if weights == BASELINE else {"weights": weights}
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
    requests = [chat_prompt(story) for story in STORIES]
    told = runtime.generate(requests, max_new_tokens=STORY_TOKENS, ignore_eos=True)
    stories = [story.token_ids for story in told]
    heard = stories if baseline is None else baseline.stories
    distributions = [
        token_logprobs(runtime, prompt, story) for prompt, story in zip(requests, heard, strict=True)
    ]
    return figures, Texts(answers, stories, torch.cat(distributions))


def token_logprobs(runtime: Runtime, prompt: str, token_ids: list[int]) -> torch.Tensor:
    """Of every token in each place, after the prompt and what stands before: float32 [tokens, vocab]."""
    runner, context = runtime.engine.runner, runtime.tokenizer.encode(prompt)
    hidden = runner.model.prefill_chunk([Segment(0, 0, context + token_ids[:-1])], runner.cache)
    return runner.model.logits(hidden[len(context) - 1 :]).log_softmax(-1)


def mean_kl_divergence(baseline: torch.Tensor, logprobs: torch.Tensor) -> float:
    """Of distributions from the baseline's, each [tokens, vocab] of log-probabilities: in nats."""
    divergences = torch.nn.functional.kl_div(logprobs, baseline, log_target=True, reduction="none").sum(-1)
    return float(divergences.mean())


def same_tokens(texts: list[list[int]], baseline: list[list[int]]) -> float:
    """The share of the baseline's tokens that stand before the first that differs, from 0 to 1."""
    same = 0
    for ids, expected in zip(texts, baseline, strict=True):
        pairs = list(map(int.__eq__, ids, expected))
        same += pairs.index(False) if False in pairs else len(pairs)
    return same / sum(map(len, baseline))


def answer_logprobs(runtime: Runtime, prompt: str, answer: str) -> list[float]:
    """Of each token of the answer, given the prompt."""
    (score,) = runtime.score([f"{prompt} {answer}"])
    prompt_tokens = len(runtime.tokenizer.encode(prompt))
    return [logprob for logprob in score.logprobs[prompt_tokens:] if logprob is not None]


def share(outcomes: Iterable[bool]) -> float:
    """The share of them that is true, from 0 to 1."""
    counted = list(outcomes)
    return sum(counted) / len(counted)
