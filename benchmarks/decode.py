"""Decode speed, one sequence: ours in every format, and its rivals, sample by sample in turn.

    python tools/random_checkpoint.py 0.7g CHECKPOINT
    python benchmarks/decode.py --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/decode-0.7g.json

A step takes a token id and ends when the most likely next one is known to Python; ours also turns it into
text. The bytes that a step has to read, over its time and the bandwidth measured beside it, are its share of
what the machine can do. A rival that is installed elsewhere is named by ``--python RUNTIME=PATH``.
"""

from __future__ import annotations

from typing import Any

import click
from arguments import Arguments, benchmark_options, print_figures, print_ratios, take_arguments
from contest import Contest, Worker, contest, figures, ratios, sample_in_turn
from harness import describe_checkpoint, describe_run, write_report

CONTESTANTS = (
    "adept-fast:float16",
    "adept-fast:bfloat16",
    "adept-fast:int8",
    "adept-fast:int4",
    "transformers:bfloat16",
    "transformers:float32",
    "llama.cpp:BF16",
    "llama.cpp:F16",
    "llama.cpp:Q8_0",
    "llama.cpp:Q4_0",
    "openvino:float16",
    "openvino:int8",
    "openvino:int4",
)
FEWEST_STEPS = 4
FIRST_ID = 5  # the ids of a prompt count up from here, past those that mean something


@click.command()
@benchmark_options(CONTESTANTS)
@click.option(
    "--steps", default=24, show_default=True, type=click.IntRange(min=FEWEST_STEPS), help="A sample."
)
@click.option(
    "--longest-sample",
    default=2.0,
    show_default=True,
    help="Seconds; who is slower takes fewer steps, so that the bandwidth has less time to change.",
)
@click.option("--prompt-tokens", default=16, show_default=True, type=click.IntRange(min=1))
def main(steps: int, longest_sample: float, prompt_tokens: int, **options: Any) -> None:
    """Time decoding."""
    arguments = take_arguments(options)
    measure = DecodeMeasure([prompt_ids(prompt_tokens)], steps, longest_sample)
    context = prompt_tokens + steps + 1
    with contest(
        arguments.contestants,
        arguments.checkpoint,
        pythons=arguments.pythons,
        threads=arguments.threads,
        context=context,
    ) as entered:
        report = run(arguments, entered, measure)
    report |= {"prompt_tokens": prompt_tokens, "steps": steps}
    print_figures(report["measured"], report["absent"])
    print_ratios(report["ratios"])
    write_report(report, arguments.output)


def run(arguments: Arguments, entered: Contest, measure: DecodeMeasure) -> dict[str, Any]:
    """Sample everyone; the report."""
    jobs = {str(worker.contestant): (worker, measure) for worker in entered.workers}
    if not jobs:
        raise click.ClickException(f"nobody can take part: {entered.absent}")
    samples, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits)
    report = describe_run("decode", arguments.samples, arguments.threads)
    report["versions"]["rivals"] = entered.versions
    return report | {
        "model": describe_checkpoint(arguments.checkpoint),
        "measured": {name: jobs[name][0].facts | figures(samples[name], dropped[name]) for name in samples},
        "absent": entered.absent,
        "ratios": ratios(samples),
    }


class DecodeMeasure:
    """Decodes after a prompt; how many steps is settled the first time that a worker is asked."""

    def __init__(self, prompts: list[list[int]], steps: int, longest_seconds: float) -> None:
        self._prompts = prompts
        self._most = steps
        self._longest = longest_seconds
        self._steps: dict[int, int] = {}

    def __call__(self, worker: Worker) -> dict[str, Any]:
        steps = self._steps.get(worker.pid, FEWEST_STEPS)
        answer = worker.call("decode", prompts=self._prompts, steps=steps)
        seconds = answer.pop("seconds") / steps
        if worker.pid not in self._steps:
            self._steps[worker.pid] = max(FEWEST_STEPS, min(self._most, int(self._longest / seconds)))
        return answer | {"seconds_per_step": seconds, "steps_per_sample": steps}


def prompt_ids(count: int, first: int = FIRST_ID) -> list[int]:
    return list(range(first, first + count))


if __name__ == "__main__":
    main()
