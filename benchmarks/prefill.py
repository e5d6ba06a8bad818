"""Reading a prompt: ours in every format, and its rivals, sample by sample in turn.

    python benchmarks/prefill.py --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/prefill-0.7g.json

Timed from the ids of the prompt to the most likely next one, known to Python. Processors, not memory, are the
limit here, so there is no share of a bandwidth; and ``at_equal_bandwidth`` is not the ratio to look at.
"""

from __future__ import annotations

from typing import Any

import click
from arguments import benchmark_options, print_figures, print_ratios, take_arguments
from contest import Worker, contest, figures, ratios, sample_in_turn
from decode import prompt_ids
from harness import describe_checkpoint, describe_run, write_report

CONTESTANTS = (
    "adept-fast:float16",
    "adept-fast:bfloat16",
    "adept-fast:float32",
    "adept-fast:int8",
    "adept-fast:int4",
    "transformers:bfloat16",
    "transformers:float32",
)


@click.command()
@benchmark_options(CONTESTANTS)
@click.option("--prompt-tokens", default=512, show_default=True, type=click.IntRange(min=1))
def main(prompt_tokens: int, **options: Any) -> None:
    """Time reading a prompt."""
    arguments = take_arguments(options)
    prompt = prompt_ids(prompt_tokens)

    def measure(worker: Worker) -> dict[str, Any]:
        return {"seconds_per_step": worker.call("prefill", prompt=prompt)["seconds"]}

    with contest(
        arguments.contestants,
        arguments.checkpoint,
        pythons=arguments.pythons,
        threads=arguments.threads,
        context=prompt_tokens + 1,
    ) as entered:
        jobs = {str(worker.contestant): (worker, measure) for worker in entered.workers}
        samples, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits)
    report = describe_run("prefill", arguments.samples, arguments.threads)
    report["versions"]["rivals"] = entered.versions
    report |= {
        "model": describe_checkpoint(arguments.checkpoint),
        "measured": {
            name: jobs[name][0].facts | figures(samples[name], dropped[name], prompt_tokens)
            for name in samples
        },
        "absent": entered.absent,
        "ratios": ratios(samples),
        "prompt_tokens": prompt_tokens,
    }
    print_figures(report["measured"], report["absent"])
    print_ratios(report["ratios"])
    write_report(report, arguments.output)


if __name__ == "__main__":
    main()
